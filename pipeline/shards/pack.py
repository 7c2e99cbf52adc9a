"""Packs a folder tree of images, or a tar of one, into WebDataset shards with their index; the images' bytes stay as they are."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from math import ceil
from operator import itemgetter
from typing import IO, Any, Literal

from pipeline import storage
from pipeline.draws import hash64
from pipeline.errors import RunError, UserError
from pipeline.shards import naming
from pipeline.shards.index import NAME, UNFINISHED, Index, Row
from pipeline.shards.labelled_files import TargetFiles
from pipeline.shards.members import Member, MemberRows, Members, sidecar
from pipeline.shards.sources import File, ImageSource, open_images
from pipeline.shards.writing import TarWriter, header, padded

_OURS = re.compile(
    r"\.?shard-\d{6,}\.(tar|members\.parquet)(\.[0-9a-f]+\.tmp)?|skipped\.tsv"
    r"|\.(index\.parquet|skipped\.tsv|pack\.unfinished)\.[0-9a-f]+\.tmp"
)
SKIPPED = "skipped.tsv"
"""The name of the list, beside the shards, of files that were left out, or whose mask or boxes are at fault: a line each of the
reason and the path."""
MOST_BYTES = 2**30
"""The default of the most bytes that a packed file may have."""

log = logging.getLogger(__name__)

_NOTE = b"An interrupted `pseudolabel pack` left this folder; run the same command again to complete it.\n"


@dataclass(frozen=True)
class PackReport:
    """What a pack wrote.

    Args:
        folder: URL of the folder of shards.
        shards: number of shards.
        samples: number of samples, all shards together.
        bytes: size of all shards together.
        classes: names of the labels 0, 1, ..., or of the classes in masks and boxes; None where there are no labels.
        skipped: files of the source that were left out: reason in words -> how many.
        skipped_files: URL of the list of them, a line each of reason and path; None where there are none.
        test: the same of the test images, if some were set apart.
        faulty: images whose mask or boxes training will refuse: reason -> how many.
        target: extension of the members that hold masks or boxes, if some were asked for.
    """

    folder: str
    shards: int
    samples: int
    bytes: int
    classes: list[str] | None
    skipped: dict[str, int] = field(default_factory=dict)
    skipped_files: str | None = None
    test: PackReport | None = None
    faulty: dict[str, int] = field(default_factory=dict)
    target: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _PlannedSample:
    """A sample to pack: its files, and the extension of each as a member."""

    key: str
    files: tuple[File, ...]
    exts: tuple[str, ...]
    label: int | None

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def pack(
    src: str,
    dst: str,
    labels: Literal["folder", "none"] = "folder",
    shard_size: int = 256 * 2**20,
    progress: Callable[[int, int], None] | None = None,
    clips: bool = False,
    max_bytes: int = MOST_BYTES,
    test: float | None = None,
    targets: TargetFiles | None = None,
) -> PackReport:
    """Pack images into `dst/shard-000000.tar`, ..., each with an index of its members beside it, and `dst/index.parquet` last.

    Files go in sorted order of their paths (those of a compressed tar in the order of the tar, which can be read only so). A key
    is the path without extension, the dots of the file's name replaced by `_`; where two files would have one key, the later one
    gets `-<extension>`, then `-<extension>-2`, ... after it. The same input makes the same bytes.

    Args:
        src: folder or tar (`.tar`, `.tar.gz`, `.tar.bz2`, `.tar.xz`), path or URL.
        dst: folder that is empty, is not there yet, or was left by an interrupted pack, which then starts over.
        labels: `folder`: the topmost folder is the class, numbered in sorted order; `none`: no labels.
        shard_size: bytes of a shard at most (a sample is never divided).
        progress: called with (bytes of images packed, bytes of all images).
        clips: files of a folder whose names agree up to the first dot (`clip7.0.jpg`, `clip7.1.jpg`) make one sample, whose key
            ends there.
        max_bytes: larger files are skipped: a file is held in memory while it is packed.
        test: share of each class (of all images where there are no labels) to set apart, chosen by a hash of the keys: the shards
            go to `dst/train` and `dst/test` then. Of a class of two or more images each side gets at least one.
        targets: masks or boxes, see `pipeline.targets.open_targets`: each becomes a member beside its image, images without one
            are skipped, and `labels` is not looked at. The index names the classes, and the numbers that stand for them.

    Raises:
        UserError: nothing to pack, nothing to set apart, an image in no folder where labels are asked for, a clip whose frames
            lie apart, or `dst` is not empty.
        RunError: a file could not be read or a shard not written; run again to start over.
    """
    if labels not in ("folder", "none"):
        raise UserError(f"labels '{labels}': known are folder and none")
    if shard_size < 1:
        raise UserError(f"a shard size of {shard_size} bytes: it must be above 0")
    if test is not None and not 0 < test < 1:
        raise UserError(f"a share of {test:g} for testing: it must be above 0 and below 1, such as 0.2")
    source = open_images(src)
    items, skipped, classes = _plan(source, labels == "folder" and targets is None, src, clips, max_bytes, targets)
    dst = storage.absolute(dst)
    parts = {dst: items}
    if test is not None:
        parts = {storage.join(dst, side): part for side, part in zip(("train", "test"), _split(items, test, src))}
    for folder in parts:
        _claim(folder)
    indices = {folder: Index(classes=classes) for folder in parts}
    faulty: dict[str, str] = {}
    meter = _Meter(sum(item.size for item in items), progress)
    try:
        for folder, part in parts.items():
            _write_shards(source, part, folder, shard_size, indices[folder], meter, targets)
        if targets is not None:
            faulty, named = targets.faults(), targets.classes()
            classes = [_printable(one.name) for one in named]
            for index in indices.values():
                index.classes, index.numbers = classes, [one.number for one in named]
        listed = _write_skipped([*skipped, *((reason, path) for path, reason in faulty.items())], next(iter(parts)))
        for folder, index in indices.items():
            index.save(folder)
            storage.remove(storage.join(folder, UNFINISHED))
    except OSError as error:
        raise RunError(
            f"packing {src} into {dst} stopped: {_message(error)}; put that right and run the same again, it starts over"
        ) from error
    counts = Counter(reason for reason, _ in skipped)
    first, *others = (
        PackReport(folder, len(rows), len(parts[folder]), sum(row.bytes for row in rows.values()), classes)
        for folder, rows in ((folder, index.rows) for folder, index in indices.items())
    )
    faults = dict(Counter(faulty.values()))
    member = None if targets is None else targets.member
    test_side = others[0] if others else None
    return replace(first, skipped=dict(counts), skipped_files=listed, test=test_side, faulty=faults, target=member)


class _Meter:
    """Adds up the bytes that are packed, and reports them."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, size: int) -> None:
        self._done += size
        if self._progress:
            self._progress(self._done, self._total)


def _split(items: list[_PlannedSample], share: float, src: str) -> tuple[list[_PlannedSample], list[_PlannedSample]]:
    """Samples to train with and to test with, each in their order: of every class the share with the lowest hashes."""
    by_class: dict[int | None, list[_PlannedSample]] = {}
    for item in items:
        by_class.setdefault(item.label, []).append(item)
    tested: set[str] = set()
    for members in by_class.values():
        ordered = sorted(members, key=lambda item: hash64("test", item.key))
        tested.update(item.key for item in ordered[: min(len(members) - 1, ceil(round(share * len(members), 6)))])
    if not tested:
        raise UserError(f"{src}: no class has two images, so none can be set apart for testing")
    return [item for item in items if item.key not in tested], [item for item in items if item.key in tested]


def _message(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _plan(
    source: ImageSource, by_folder: bool, src: str, clips: bool, max_bytes: int, targets: TargetFiles | None
) -> tuple[list[_PlannedSample], list[tuple[str, str]], list[str] | None]:
    """Decide which files are packed, with which key and label; which are skipped, with the reason; and the classes."""
    skipped = [("replaced by a later file of the same name in the tar", path) for path in source.replaced]
    images: list[tuple[File, str, str]] = []
    for file in source.files:
        reason, stem, ext = _judge(file, clips)
        if not reason and file.size > max_bytes:
            reason = f"larger than {max_bytes:,} bytes (--max-bytes)"
        if not reason and targets is not None and not targets.has(file.path):
            reason = f"image without a target ({targets.member})"
        if reason:
            skipped.append((reason, file.path))
        else:
            images.append((file, stem, ext))
    if targets is not None:
        unused = targets.unused(file.path for file, _, _ in images)
        skipped += [(f"target ({targets.member}) without an image", path) for path in unused]
    if not images:
        counts = Counter(reason for reason, _ in skipped).most_common(5)
        found = ", ".join(f"{times} {reason}" for reason, times in counts) or "no files at all"
        raise UserError(f"{src}: holds no images ({found})")
    classes = None
    if by_folder:
        if loose := next((file.path for file, _, _ in images if "/" not in file.path), None):
            raise UserError(f"{src}: {loose} lies in no class folder; put each class into a folder, or pack with labels 'none'")
        classes = sorted({file.path.partition("/")[0] for file, _, _ in images})
    number = {name: place for place, name in enumerate(classes or [])}
    if not clips:
        _warn_of_same_stems([file.path for file, _, _ in images])
    used: set[str] = set()
    items: list[_PlannedSample] = []
    samples = (list(group) for _, group in groupby(images, key=itemgetter(1))) if clips else ([image] for image in images)
    for sample in samples:
        of, (stem, *_), exts = zip(*sample)
        if clips and stem in used:
            raise UserError(f"{src}: the frames of {stem} do not lie beside each other; in a folder, or a plain tar, they would")
        items.append(_PlannedSample(_unused(stem, exts[0], used), of, exts, number.get(of[0].path.partition("/")[0])))
    return items, skipped, None if classes is None else [_printable(name) for name in classes]


def _warn_of_same_stems(paths: list[str]) -> None:
    """Warn that images with one name up to the first dot, as members of a WebDataset sample have, become separate samples."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        folder, slash, base = path.rpartition("/")
        groups.setdefault(folder + slash + base.partition(".")[0], []).append(path)
    alike = [group for group in groups.values() if len(group) > 1]
    if alike:
        log.warning(
            "%d images are named like another up to the first dot, such as %s and %s: each becomes a sample of its own (--clips "
            "makes one of them); leave out images that are a depth map or a mask of another",
            *(sum(map(len, alike)), *map(_printable, alike[0][:2])),
        )


def _judge(file: File, clips: bool) -> tuple[str | None, str, str]:
    """Why a file is skipped, or None; its key before collisions are resolved; its extension."""
    folder, slash, base = file.path.rpartition("/")
    stem, dot, ext = base.rpartition(".")
    if any(part.startswith(".") and part != ".." for part in file.path.split("/")):
        return "hidden", "", ""
    if not dot or not naming.is_image(ext.lower()):
        return f"not an image by name ({dot}{ext.lower()})" if dot else "not an image by name (no extension)", "", ""
    if file.size < 0:
        return "link that leads nowhere" if file.size == -1 else "no plain file (a pipe, a socket or a device)", "", ""
    if clips:
        stem, _, ext = base.partition(".")
    key = _printable(folder + slash + stem.replace(".", "_"))
    if naming.is_reserved(key):
        return "name that WebDataset keeps for itself (__name__)", "", ""
    return None, key, _printable(ext.lower())


def _write_skipped(skipped: list[tuple[str, str]], dst: str) -> str | None:
    if not skipped:
        return None
    url = storage.join(dst, SKIPPED)
    with storage.write_atomic(url) as file:
        for reason, path in sorted(skipped):
            file.write(f"{reason}\t{naming.plain(_printable(path))}\n".encode())
    return url


def _unused(stem: str, ext: str, used: set[str]) -> str:
    key, number = stem, 1
    while key in used:
        key = f"{stem}-{ext}" if number == 1 else f"{stem}-{ext}-{number}"
        number += 1
    used.add(key)
    return key


def _printable(name: str) -> str:
    return naming.plain(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def _claim(dst: str) -> None:
    """Check that the folder holds nothing but an interrupted pack, remove that, and mark the folder as unfinished."""
    if not storage.is_writable(dst):
        raise UserError(f"{dst}: http storage cannot be written")
    if sidecar(storage.join(dst, "shard-000000.tar")) is None:
        raise UserError(f"{dst}: a URL with a query is no folder; give it without the `?` and what follows")
    try:
        there = storage.names(dst)
        left = [name for name in there if _OURS.fullmatch(name)] if UNFINISHED in there and NAME not in there else []
        others = [name for name in there if name not in left and (name != UNFINISHED or NAME in there)]
        if others:
            what = "it already holds a finished pack" if NAME in others else f"it holds {others[0]}"
            raise UserError(f"{dst} is not empty: {what}; name another folder, or delete this one")
        for name in left:
            storage.remove(storage.join(dst, name))
        storage.make_folder(dst)
        with storage.write_atomic(storage.join(dst, UNFINISHED)) as file:
            file.write(_NOTE)
    except OSError as error:
        raise UserError(f"{dst} cannot be written: {error}") from None


def _write_shards(
    source: ImageSource,
    items: list[_PlannedSample],
    dst: str,
    shard_size: int,
    index: Index,
    meter: _Meter,
    targets: TargetFiles | None,
) -> None:
    samples = _samples(source, items, targets)
    waiting = next(samples, None)
    while waiting is not None:
        name = f"shard-{len(index.rows):06d}.tar"
        with storage.write_atomic(storage.join(dst, name)) as file:
            shard = _Shard(file)
            while waiting is not None and (not shard.samples or shard.tar.position + waiting.length <= shard_size):
                shard.add(waiting)
                meter.add(waiting.item.size)
                waiting = None  # frees its bytes before the next ones are read
                waiting = next(samples, None)
            shard.tar.finish()
        Members.of(shard.rows, shard.tar.position).save(storage.join(dst, name.removesuffix(".tar") + ".members.parquet"))
        index.rows[name] = Row(shard.samples, shard.tar.position, shard.tar.sha256.hexdigest())


@dataclass(frozen=True, slots=True)
class _LoadedSample:
    """A sample ready to be written: its members' extensions and bodies."""

    item: _PlannedSample
    parts: list[tuple[str, bytes]]

    @property
    def length(self) -> int:
        return sum(len(header(f"{self.item.key}.{ext}", len(body))) + padded(len(body)) for ext, body in self.parts)


def _samples(source: ImageSource, items: list[_PlannedSample], targets: TargetFiles | None) -> Iterator[_LoadedSample]:
    read = source.read([file for item in items for file in item.files])
    for item in items:
        yield _load(item, read, targets)


def _load(item: _PlannedSample, read: Iterator[tuple[File, bytes]], targets: TargetFiles | None) -> _LoadedSample:
    images = [(ext, body) for ext, (_, body) in zip(item.exts, read)]
    beside = [] if item.label is None else [("cls", str(item.label).encode())]
    if targets is not None:
        beside.append((targets.member, targets.body(item.files[0].path)))
    return _LoadedSample(item, images + beside)


class _Shard:
    """A tar that is being written, and the index of its members."""

    def __init__(self, file: IO[bytes]) -> None:
        self.tar = TarWriter(file)
        self.samples = 0
        self.rows = MemberRows()

    def add(self, sample: _LoadedSample) -> None:
        parts = [Member(ext, self.tar.add(f"{sample.item.key}.{ext}", body), len(body)) for ext, body in sample.parts]
        self.rows.add(sample.item.key, parts, sample.item.label, None)
        self.samples += 1
