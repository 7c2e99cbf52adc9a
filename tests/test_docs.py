"""The docs agree with the code: generated text, links, commands, recipes, examples, files, and imports."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from typer.main import get_command

import pseudolabel
from pipeline.draws import sample_id
from pipeline.materialize.run import render
from pipeline.recipe import load_recipe, parse_recipe
from pipeline.rendering.renderer import Renderer
from pipeline.shards.corpus import Sample
from pipeline.shards.pack import pack

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *(ROOT.glob("[a-z]*/README.md"))],
    key=lambda page: page.as_posix(),
)
PLANES = ("pipeline", "trainers", "cluster", "pseudolabel")
HEAVY = {"torch", "torchvision", "ray", "nvidia", "cv2", "matplotlib", "tensorboard", "mlflow", "wandb", "s3fs", "gcsfs"}

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_QUOTED = re.compile(r"`(pseudolabel(?:\s[^`]+)?)`")


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic looks up annotations there
    spec.loader.exec_module(module)
    return module


build = _load(ROOT / "docs" / "build.py", "docs_build")


def _named(paths: list[Path]) -> list[Any]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def _fenced(page: Path, *languages: str) -> list[str]:
    return [match[3] for match in _FENCE.finditer(page.read_text()) if match[2] in languages]


def _code(*languages: str) -> list[Any]:
    """Every code block of some languages on all pages."""
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}-{i}")
        for page in PAGES
        for i, text in enumerate(_fenced(page, *languages))
    ]


# Text that comes from the code


@pytest.mark.parametrize("page", build.parts())
def test_generated_text_is_what_the_code_says(page: str) -> None:
    assert build.rebuilt(page) == (ROOT / page).read_text(), "out of date; run: python docs/build.py"


def test_a_task_without_a_part_in_the_docs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = build.parts()
    monkeypatch.setattr(build, "parts", lambda: {"docs/tasks.md": {**parts["docs/tasks.md"], "new": ""}})
    with pytest.raises(ValueError, match="new"):
        build.rebuilt("docs/tasks.md")


def test_the_architecture_names_every_file_and_no_other() -> None:
    named = re.findall(r"^\| `([\w/]+\.py)` \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    there = [str(path) for plane in PLANES for path in build.modules(plane)]
    assert sorted(named) == sorted(there), "run: python docs/build.py"


@pytest.mark.parametrize("plane", PLANES[:3])
def test_a_planes_own_tree_names_what_is_there(plane: str) -> None:
    text = (ROOT / plane / "README.md").read_text()
    names = re.findall(r"\b[\w/]+(?:\.py\b|/(?= |\)))", "\n".join(line for line in text.splitlines() if line.startswith("    ")))
    assert names
    assert [name for name in names if not (ROOT / plane / name).exists()] == []


@pytest.mark.parametrize("page", _named(PAGES))
def test_files_that_are_spoken_of_are_there(page: Path) -> None:
    spoken_of = re.findall(r"`((?:pipeline|trainers|cluster|pseudolabel|tests|recipes|docs)/[\w/.]*)`", page.read_text())
    assert [name for name in spoken_of if not (ROOT / name).exists()] == []


# Links and pictures


@pytest.mark.parametrize("page", _named(PAGES))
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (heading and heading not in _anchors(target)):
            broken.append(link)
    assert broken == []


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_picture_is_shown_and_all_are_small() -> None:
    shown = {
        (page.parent / link).resolve() for page in PAGES for link in _LINK.findall(page.read_text()) if link.endswith(".png")
    }
    there = set((ROOT / "docs" / "images").iterdir())
    assert shown == there
    assert sum(picture.stat().st_size for picture in there) < 1_350_000


# Commands


def _command_lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Lines that call `pseudolabel`, and whether they are complete."""
    for block in _fenced(page, "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if (words := line.strip().removeprefix("$ ")).startswith("pseudolabel"):
                yield words, True
    for quoted in _QUOTED.findall(_FENCE.sub("", page.read_text())):
        yield quoted, False


@pytest.mark.parametrize("page", _named(PAGES))
def test_quoted_commands_are_understood_by_the_command_line(page: Path) -> None:
    for line, complete in _command_lines(page):
        try:
            _parse(shlex.split(line, comments=True)[1:], complete)
        except Exception as error:
            raise AssertionError(f"{line}: {error}") from error


@pytest.mark.parametrize("line", ["pretain recipe.yaml", "pretrain", "pretrain r.yaml --sett a=1", "pack a b --labels foldr"])
def test_a_mistaken_command_would_be_found(line: str) -> None:
    with pytest.raises(Exception, match=r"No such|Missing|Invalid|not one of"):
        _parse(line.split(), complete=True)


def _parse(words: list[str], complete: bool) -> None:
    """Parse a call's words without doing anything; of a call that is only mentioned, arguments may be missing."""
    from cluster.cli import app

    group: Any = get_command(app)
    try:
        context = group.make_context("pseudolabel", list(words) or ["tasks"])
        rest = [*getattr(context, "_protected_args", []), *context.args]
        name, command, rest = group.resolve_command(context, rest)
        command.make_context(name, rest, parent=context)
    except typer.Exit:
        pass  # --help, --version
    except typer.BadParameter as error:
        if complete or type(error).__name__ != "MissingParameter":
            raise


def test_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    asked = {target for page in PAGES for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test"} <= asked
    assert [target for target in sorted(asked) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


# Recipes


@pytest.mark.parametrize("path", _named(sorted((ROOT / "recipes").glob("*.yaml"))))
def test_the_projects_recipes_validate(path: Path) -> None:
    load_recipe(path)


@pytest.mark.parametrize("text", _code("yaml"))
def test_recipes_in_the_docs_validate(text: str) -> None:
    """A part of a recipe is completed by the sections that are required."""
    parse_recipe({"name": "part", "seed": 0, "corpus": {"shards": "shards"}, **yaml.safe_load(text)})


# Python


@pytest.mark.parametrize("text", _code("python"))
def test_python_in_the_docs_imports_what_is_there(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PLANES:
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pseudolabel":
            assert hasattr(pseudolabel, node.attr), node.attr


@pytest.fixture
def demo(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shape of all crops of a small corpus in the place of the demo's, as it is written."""
    pack(str(photos), str(tmp_path / "runs/demo/shards/train"))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/demo.yaml").write_text((ROOT / "recipes/demo.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    size, samples = load_recipe("recipes/demo.yaml").image.size, len(list(photos.rglob("*.*")))
    return f"{samples}, {size}, {size}, 3"


def test_the_readmes_first_example_runs(demo: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(_fenced(ROOT / "README.md", "python")[0], {})  # noqa: S102
    assert f"({demo})" in capsys.readouterr().out


@pytest.mark.usefixtures("local_ray")
def test_the_readmes_example_of_a_ray_dataset_runs(demo: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(_fenced(ROOT / "README.md", "python")[1], {})  # noqa: S102
    assert f"torch.Size([{demo}])" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_the_examples_of_reading_rendered_pairs_run(
    form: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(str(photos), str(tmp_path / "shards"))
    document = load_recipe(ROOT / "recipes/demo.yaml").model_dump(mode="json")
    changed = {
        "corpus": {"shards": str(tmp_path / "shards")},
        "image": {"size": 36},
        "tasks": {"rotation": {}, "jigsaw": {"grid": 3}, "occlusion": {}},
        "render": {"format": form},
        "engine": "cpu",
    }
    render(parse_recipe({**document, **changed}), str(tmp_path / "pairs"), here=True)
    monkeypatch.chdir(tmp_path)
    (example,) = (
        text for text in _fenced(ROOT / "docs/rendered.md", "python") if f'.{form.replace("webdataset", "tar")}")' in text
    )
    capsys.readouterr()
    exec(example, {})  # noqa: S102
    lines = capsys.readouterr().out.splitlines()
    samples = 24 if form == "webdataset" else 1
    assert len(lines) == samples
    assert all("9, " in line for line in lines)


def test_the_example_of_a_new_task_makes_pairs(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "context.py"
    path.write_text(_fenced(ROOT / "docs/adding.md", "python")[0])
    task = _load(path, "docs_context").Context()
    recipe = parse_recipe(
        {"name": "new", "seed": 1, "corpus": {"shards": "-"}, "image": {"size": 60}, "tasks": {"context": task}, "engine": "cpu"}
    )
    files = sorted(photos.rglob("*.jpg"))
    samples = [Sample(file.stem, sample_id(str(i)), file.read_bytes(), "jpg", -1, None) for i, file in enumerate(files)]
    columns = Renderer(recipe)(samples, epoch=0).columns
    assert columns["weight"].all()
    assert columns["context.input"].shape == (len(files), *task.input_shape(60))
    assert len(np.unique(columns["context.label"])) > 4
    middle = columns["image"][:, 15:45, 15:45].reshape(len(files), -1, 3)
    assert all((patch[5, 5] == around).all(-1).any() for patch, around in zip(columns["context.input"][:, 0], middle))


# Who imports whom


def _imports(path: Path, top_level: bool = False) -> Iterator[str]:
    """Modules that a file imports, and what it takes from them; those for the type checker only are left out."""
    tree = ast.parse(path.read_text())
    nodes: list[ast.AST] = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    for node in nodes if top_level else [inner for outer in nodes for inner in ast.walk(outer)]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = [ROOT / path for plane in PLANES for path in build.modules(plane)]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


@pytest.mark.parametrize("plane", PLANES)
def test_imports_go_down_only(plane: str) -> None:
    above = set(PLANES[PLANES.index(plane) + 1 :]) | {"tests", "docs"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == plane and path.name != "__main__.py"  # nothing imports these
        for name in _imports(path)
        if name.split(".")[0] in above
    ]
    assert wrong == []


def test_the_data_plane_knows_no_networks_and_loads_nothing_heavy_at_once() -> None:
    ours = [path for path in FILES if path.relative_to(ROOT).parts[0] == "pipeline"]
    networks = [
        f"{path} imports {name}" for path in ours for name in _imports(path) if re.match(r"torchvision|torch\.(nn|optim)\b", name)
    ]
    heavy = [f"{path} imports {name}" for path in ours for name in _imports(path, top_level=True) if name.split(".")[0] in HEAVY]
    assert networks == []
    assert heavy == []


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: {other for other in _imports(path) if other in MODULES and other != name} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


FLOORS = {
    plane: re.findall(r"`(\w+)`", row)
    for plane, row in re.findall(
        r"^\| `(\w+)/` \| (`errors`.*|`networks`.*|`console`.*) \|$", (ROOT / "docs/architecture.md").read_text(), re.M
    )
}
"""The folders and files at the top of each plane, from the ground up, as the docs have them."""


@pytest.mark.parametrize("plane", PLANES[:3])
def test_no_file_imports_from_a_floor_above_its_own(plane: str) -> None:
    floors = FLOORS[plane]
    assert sorted(floors) == sorted({name.split(".")[1] for name in MODULES if name.startswith(f"{plane}.")})
    wrong = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        if name.startswith(f"{plane}.")
        for other in _imports(path)
        if other.startswith(f"{plane}.") and floors.index(other.split(".")[1]) > floors.index(name.split(".")[1])
    ]
    assert wrong == []


MOST_ENTRIES = {"pipeline": 16, "trainers": 10, "cluster": 10}


@pytest.mark.parametrize("plane", MOST_ENTRIES)
def test_the_top_of_a_plane_is_seen_at_a_glance(plane: str) -> None:
    entries = [path.name for path in (ROOT / plane).iterdir() if path.name not in ("__init__.py", "__pycache__", "py.typed")]
    assert len(entries) <= MOST_ENTRIES[plane], sorted(entries)


def test_no_two_classes_share_a_name() -> None:
    found: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(name)
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
