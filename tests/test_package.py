"""The package as a user meets it: what `import pseudolabel` offers, and that our package names mean our packages wherever it
runs."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pseudolabel
from pipeline.errors import UserError
from pipeline.processes.home import HOME, PACKAGES, importer, namesake
from pipeline.recipe import Recipe
from pipeline.rendering.find_crashers import find_crashers
from pipeline.shards.opening import open_corpus
from pipeline.streaming.connection import connect_ray
from tests.test_docs import HEAVY

_YOURS = 'raise SystemExit("yours")\n'
_WITHOUT = ("PYTHONPATH", "PYTHONSAFEPATH")


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder."""
    clean = {name: value for name, value in os.environ.items() if name not in _WITHOUT} | environment
    return subprocess.run([sys.executable, *words], cwd=folder, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture(params=["a file", "a package"])
def shadowed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A working directory in which files of the user's own have the names of our packages."""
    for name in PACKAGES[:3]:
        if request.param == "a file":
            (tmp_path / f"{name}.py").write_text(_YOURS)
            continue
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(_YOURS)
    return tmp_path


# What it offers


def _for_type_checkers() -> dict[str, str]:
    """Module by name, as the type checker reads it; each name is exported on purpose: `import x as x`."""
    tree = ast.parse((HOME / "pseudolabel" / "__init__.py").read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    assert all(alias.name == alias.asname for node in imports for alias in node.names)
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_every_name_is_there_for_code_as_for_type_checkers() -> None:
    shown = _for_type_checkers()
    assert sorted(shown) == sorted(pseudolabel.__all__) == sorted(dir(pseudolabel))
    for name, module in shown.items():
        assert getattr(pseudolabel, name) is getattr(importlib.import_module(module), name)
    for face in ("pipeline", "trainers"):
        assert set(importlib.import_module(face).__all__) <= set(pseudolabel.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pears'"):
        _ = pseudolabel.pears  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_may_read_each_package(name: str) -> None:
    assert (HOME / name / "py.typed").exists()


# Whose packages they are


@pytest.mark.parametrize("script", ["script.py", "-c", "-m"])
def test_a_script_beside_files_of_our_names_imports_ours_and_nothing_heavy(shadowed: Path, script: str) -> None:
    code = (
        "import pseudolabel, sys; from pipeline.recipe import load_recipe; import trainers, cluster.cli; "
        "assert pseudolabel.load_recipe is load_recipe; "
        f"print(sorted({HEAVY!r} & set(sys.modules)), {str(HOME)!r} in sys.path[:1])"
    )
    (shadowed / "script.py").write_text(code)
    words = {"script.py": ["script.py"], "-c": ["-c", code], "-m": ["-m", "script"]}[script]
    done = run(shadowed, *words, PYTHONPATH="" if _installed() else str(HOME))
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] False\n", "")


def _installed() -> bool:
    """Whether the packages are installed in the environment; if not, the folder that holds them must be given."""
    return run(Path("/"), "-c", "import pseudolabel").returncode == 0


def test_another_package_that_was_imported_under_our_name_is_named() -> None:
    done = run(HOME, "-c", "import json, sys; sys.modules['pipeline'] = json; import pseudolabel")
    last = done.stderr.splitlines()[-1]
    assert "another `pipeline` is, from " in last
    assert "json" in last
    assert "write `import pseudolabel` before" in last


def test_the_command_is_ours_where_the_path_leads_to_others(shadowed: Path) -> None:
    """As in a job, whose working directory Ray puts into `PYTHONPATH`."""
    done = run(shadowed, "-m", "pseudolabel", "tasks", PYTHONPATH=f"{shadowed}:{HOME}")
    assert done.returncode == 0, done.stderr
    assert "rotation" in done.stdout


def test_a_process_that_tries_decoders_is_ours(
    tiles: Path, tmp_path: Path, run_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = open_corpus(str(tiles)).read(0, [0])
    (tmp_path / "pipeline.py").write_text(_YOURS)
    monkeypatch.chdir(tmp_path)
    assert find_crashers(samples, run_recipe({"engine": "cpu"}), 0, center=False) == {}


def test_what_workers_would_find_is_known_before_they_start(shadowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HOME))
    monkeypatch.chdir(HOME)
    assert namesake() is None
    monkeypatch.chdir(shadowed)
    found = namesake()
    assert found is not None
    assert Path(found).is_relative_to(shadowed)
    monkeypatch.chdir("/")
    assert namesake() is None
    monkeypatch.setenv("PYTHONPATH", f"/nowhere:{shadowed}")
    assert namesake() == found
    (shadowed / "inner" / "pipeline").mkdir(parents=True)
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.chdir(shadowed / "inner")
    assert namesake() is None


def test_a_worker_imports_ours_by_a_function_that_it_need_not_find(shadowed: Path) -> None:
    """As Ray sends it: by value, in a process that would import the user's own."""
    from ray import cloudpickle

    sent = cloudpickle.dumps(importer())
    code = (
        f"import sys, pickle; sys.path.append({str(HOME)!r}); pickle.loads({sent!r})(); "
        "from pipeline.rendering.units import UnitSource; print(UnitSource.__module__)"
    )
    done = run(shadowed, "-c", code)
    assert (done.returncode, done.stdout) == (0, "pipeline.rendering.units\n"), done.stderr


def test_a_ray_of_the_users_own_whose_workers_would_import_his_is_refused(
    local_ray: Any, shadowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_ray()
    monkeypatch.chdir(shadowed)
    with pytest.raises(UserError, match=r"Ray's workers would import .*give it another name, or leave out ray.init\(\)"):
        connect_ray()
