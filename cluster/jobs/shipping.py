"""Ships the working directory to a cluster: a copy as it is now, without large or secret files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import UserError
from pipeline.processes.home import PACKAGES

EXCLUDES = [
    ".git", ".venv/", "venv/", "runs/", "node_modules/", "__pycache__/", ".*_cache/", ".hypothesis/",
    "*.tar", "*.tar.*", "*.tgz", "*.zip", "*.parquet", "*.pt", "*.pth", "*.ckpt",
    ".env*", ".netrc", ".aws/", ".ssh/", ".ray/", ".kube/", "*.pem", "*.key",
]  # fmt: skip
"""Patterns of files in a working directory that are not code, but large or secret."""

_IGNORE_FILES = (".gitignore", ".rayignore")
_MOST_BYTES = 500 * 2**20  # of Ray's own limit


@contextmanager
def snapshot(folder: Path, only: Sequence[str] | None = None) -> Iterator[Path]:
    """Yield a copy of a folder, so that nothing changes while it is sent; it is removed after the block.

    Args:
        folder: the folder to copy, without `EXCLUDES` and without what its `.gitignore` and `.rayignore` files name.
        only: the files to copy, instead of all.

    Raises:
        UserError: a file cannot be read, or the copy is larger than a cluster accepts.
    """
    chosen, sizes = [], Counter[str]()
    for path in _files(folder) if only is None else [Path(name).resolve() for name in only]:
        part = path.relative_to(folder)
        with suppress(FileNotFoundError):  # gone since it was listed
            sizes[part.parts[0]] += path.stat().st_size
            chosen.append(part)
    if sizes.total() > _MOST_BYTES:
        largest, size = sizes.most_common(1)[0]
        raise UserError(
            f"{folder} has {sizes.total() / 2**20:,.0f} MiB to ship, {size / 2**20:,.0f} of them in {largest}, and a cluster "
            f"accepts {_MOST_BYTES / 2**20:g}: name in .gitignore or .rayignore what the job does not need, or use --no-ship"
        )
    with tempfile.TemporaryDirectory(prefix="pseudolabel-") as place:
        for part in chosen:
            target = Path(place, part)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copy(folder / part, target)
            except FileNotFoundError:  # gone since it was listed
                continue
            except OSError as error:
                raise UserError(
                    f"{folder / part} cannot be shipped ({error.strerror}): name it in .gitignore or .rayignore, or use --no-ship"
                ) from None
        yield Path(place)


def is_checkout(folder: Path) -> bool:
    """Whether a folder is a checkout of this project, whose own code is to run on the cluster."""
    return all((folder / name / "__init__.py").is_file() for name in PACKAGES)


def _files(root: Path) -> Iterator[Path]:
    """The files below a folder that are shipped; links are followed, pipes and sockets are left out."""
    from pathspec import GitIgnoreSpec

    rules = [(root, GitIgnoreSpec.from_lines(EXCLUDES))]

    def travels(path: Path, folder: bool) -> bool:
        names = [(spec, f"{path.relative_to(base)}{'/' if folder else ''}") for base, spec in rules if path.is_relative_to(base)]
        return not any(spec.match_file(name) for spec, name in names)

    seen = set()
    for place, folders, files in os.walk(root, followlinks=True):
        here = Path(place)
        if (real := here.resolve()) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        for name in _IGNORE_FILES:
            if name in files:
                rules.append((here, GitIgnoreSpec.from_lines((here / name).read_text(errors="replace").splitlines())))
        folders[:] = sorted(name for name in folders if travels(here / name, True))
        yield from (path for name in sorted(files) if (path := here / name).is_file() and travels(path, False))
