"""Makes what the docs take from the code: the recipe reference, the tasks, the tree of files, and the pictures of pairs.

    python docs/build.py

Text goes between the marks `<!-- generated: name -->` and `<!-- end -->` of the pages; all around them is written by hand.
"""

from __future__ import annotations

import ast
import json
import re
import tempfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cluster.pictures.preview import sheet
from pipeline.labels import Classes, Colours, Direction, LabelKind, LabelledViews, Order, Pixels, Region, Views
from pipeline.recipe import Recipe, parse_recipe
from pipeline.shards.pack import pack
from pipeline.tasks import Task, registry
from trainers.objectives import registry as objectives

ROOT = Path(__file__).resolve().parents[1]
PLANES = ("pipeline", "trainers", "cluster", "pseudolabel")

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
FOUR = ["colorization", "jigsaw", "occlusion", "rotation"]
"""Tasks of the picture on the first page."""
VIEWS = ["simclr", "byol", "swav"]
"""Tasks of the picture of views; the others' look like theirs."""
SIZE = 96
COLOURS = {"pairs": 128}
FEWER_COLOURS = 96
"""Palettes, for small files; the picture on the first page has more."""
_ROUNDS = 3
"""Of k-means over the colours: 96 of them are nearer to the picture than 128 by median cut alone, in a sixth fewer bytes."""

_SHAPE_SIZE = 224
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_MOST_CHARACTERS = 100
_ONE = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_MANY = {int: "whole numbers", float: "numbers", str: "texts"}
_BLOCK = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def parts() -> dict[str, dict[str, str]]:
    """The generated text: page -> name of the part -> Markdown."""
    return {
        "docs/recipe.md": {"reference": "\n\n".join(_sections(Recipe, "", None))},
        "docs/tasks.md": {"tasks": _task_table(), **{name: _task(name, task) for name, task in own_tasks().items()}},
        "docs/methods.md": {"objectives": _objectives()},
        "docs/architecture.md": {plane: _tree(plane) for plane in PLANES},
    }


def rebuilt(page: str) -> str:
    """A page's text with its generated parts made anew.

    Raises:
        ValueError: the page's marks are not those of its parts.
    """
    wanted, text = parts()[page], (ROOT / page).read_text()
    marked = [match[2] for match in _BLOCK.finditer(text)]
    if sorted(marked) != sorted(wanted):
        raise ValueError(f"{page} has marks for {', '.join(sorted(marked))}; the code has {', '.join(sorted(wanted))}")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{wanted[match[2]]}\n\n{match[3]}", text)


def own_tasks() -> dict[str, type[Task]]:
    """The tasks of this repository, without those that other packages add."""
    return {name: task for name, task in registry().items() if task.__module__.startswith("pipeline.tasks.")}


def modules(plane: str) -> list[Path]:
    """The Python files of a plane, relative to the root, folders after files."""
    found = (path.relative_to(ROOT) for path in (ROOT / plane).rglob("*.py"))
    return sorted(found, key=lambda path: (path.parent.parts, path.name))


def _sections(model: type[BaseModel], path: str, defaults: BaseModel | None) -> Iterator[str]:
    rows: list[tuple[str, ...]] = []
    below: list[str] = []
    for key, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        where = f"{path}.{key}".lstrip(".")
        default = getattr(defaults, key) if defaults is not None else field.get_default(call_default_factory=True)
        if inner is None:
            shown = "**required**" if field.is_required() else _value(default)
            kind = "mapping, see [tasks](tasks.md)" if where == "tasks" else _type(field)
        else:
            shown = "**required**" if field.is_required() else "left out" if default is None else ""
            kind = f"[section](#{where.replace('.', '')})"
            below += _sections(inner, where, default if isinstance(default, BaseModel) else None)
        description = field.description or (_sentences(inner)[0] if inner else "")
        rows.append((f"`{key}`", kind, shown, description))
    heading = f"### {path}" if path else "### top level"
    yield f"{heading}\n\n{_about(model)}\n\n{_table(('key', 'type', 'default', 'meaning'), rows)}"
    yield from below


def _task_table() -> str:
    rows = [
        (f"[`{name}`](#{name})", _label(task().label_kind())[0], _sentences(task)[0], task.source)
        for name, task in own_tasks().items()
    ]
    return _table(("task", "label", "what it does", "paper"), rows)


def _pictured(task: Task) -> bool:
    """Whether the task has a picture: views have one of their own, and labels that are not drawn need a corpus that has some."""
    return not (task.view_columns(SIZE) or task.learns_classes or "annotation" in type(task).model_fields)


def _task(name: str, cls: type[Task]) -> str:
    task = cls()
    shape = " x ".join(map(str, task.input_shape(_SHAPE_SIZE)))
    own = [key for key in cls.model_fields if key not in Task.model_fields]
    rows = [_parameter(key, cls.model_fields[key]) for key in (*own, *Task.model_fields)]
    norm = {"image": "the corpus's channel statistics", "patch": "each patch's own mean and deviation"}[cls.input_norm]
    small = {column: size for column, size in task.view_columns(_SHAPE_SIZE).items() if column != "input"}
    more = "".join(f", and `{name}.{column}`, {count} x {side} x {side} x 3" for column, (count, side) in small.items())
    facts = (
        f"- **Input** at {_SHAPE_SIZE} pixels: `{name}.input`, uint8, {shape}{more}; standardised by {norm}.\n"
        f"- **Label**: {_label(task.label_kind())[1].replace('<task>', name)}\n"
        f"- **Paper**: {cls.source}."
    )
    picture = [f"![Pairs of {name}: the crop, the input and the label](images/{name}.png)"] if _pictured(task) else []
    return "\n\n".join([_about(cls), *picture, facts, _table(("parameter", "type", "default", "meaning"), rows)])


def _objectives() -> str:
    """The parameters of every objective that has some."""
    heads = ("parameter", "type", "default", "meaning")
    return "\n\n".join(
        f"### {name}\n\n{_about(cls)}\n\n{_table(heads, [_parameter(*one) for one in cls.Parameters.model_fields.items()])}"
        for name, cls in objectives().items()
        if cls.Parameters.model_fields
    )


def _parameter(key: str, field: FieldInfo) -> tuple[str, ...]:
    default = "**required**" if field.is_required() else _value(field.get_default(call_default_factory=True))
    return f"`{key}`", _type(field), default, field.description or ""


def _label(kind: LabelKind) -> tuple[str, str]:
    """A label kind in a word or two, and in a sentence."""
    if isinstance(kind, Classes):
        return "a class", f"`<task>.label`, int64, one of {kind.count} classes with the default parameters."
    if isinstance(kind, Order):
        return "an order", f"`<task>.label`, int64, {kind.items} numbers a sample: where each of the patches belongs."
    if isinstance(kind, Direction):
        return "an angle", "`<task>.label`, float32, two numbers a sample: the angle's sine and cosine."
    if isinstance(kind, Region):
        cell = f"`<task>.label`, int64, one of {kind.grid**2} cells with the default parameters"
        return "a region", f"{cell}; `<task>.mask`, uint8, is 1 in it."
    if isinstance(kind, LabelledViews):
        return (
            "a class",
            f"the column `class`, int64, one of {kind.classes} classes with the default parameters, -1 if not known.",
        )
    if isinstance(kind, Views):
        return "views", "no column: the label of a view is the sample's other views or, with a single view, its own parts."
    if isinstance(kind, Colours):
        where = f"of a version of {kind.side} x {kind.side} pixels" if kind.side else "at a quarter of the resolution"
        mask = ", one pixel, at which `<task>.mask`, uint8, is 1" if kind.masked else ""
        return "colours", f"which of {len(kind.palette)} colours the column `{kind.target}` shows {where}{mask}."
    assert isinstance(kind, Pixels)
    what = "the two colour-difference channels of" if kind.channels == "chroma" else "the pixels of"
    mask = "; `<task>.mask`, uint8, is 1 where they are hidden" if kind.masked else ""
    cells = f", each of {kind.grid} x {kind.grid} cells standardised by itself" if kind.grid else ""
    return "an image", f"{what} the column `{kind.target}`, which is named, not copied{cells}{mask}."


def _tree(plane: str) -> str:
    """A table for each folder of a plane, each file with the first sentence of its docstring."""
    tables = []
    folders: dict[Path, list[tuple[str, str]]] = {}
    for path in modules(plane):
        about = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
        folders.setdefault(path.parent, []).append((f"`{path}`", _first_sentence(about)))
    for folder, rows in folders.items():
        tables.append(f"**`{folder}/`**\n\n{_table(('file', 'what lives there'), rows)}")
    return "\n\n".join(tables)


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0]


def _sentences(cls: type) -> list[str]:
    return re.split(r"(?<=\.)\s+", " ".join((cls.__doc__ or "").split()))


def _about(cls: type) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (cls.__doc__ or "").split("\n\n"))


def _type(field: FieldInfo) -> str:
    limits = [f"{words} {_power(getattr(m, key))}" for m in field.metadata for key, words in _LIMITS.items() if hasattr(m, key)]
    return ", ".join([_kind(field.annotation), *limits])


def _power(limit: float) -> str:
    return f"{limit:g}" if limit < 2**32 else f"2^{int(limit).bit_length() - 1}"


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _either([f"`{choice}`" for choice in inner])
    if origin in (Union, types.UnionType):
        return _either([_kind(one) for one in inner if one is not type(None)])
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"list of {len(inner)} {_MANY[inner[0]]}"
    if origin in (tuple, list):
        each = get_args(inner[0])[0] if get_origin(inner[0]) is Annotated else inner[0]
        return f"list of {_MANY.get(each) or _kind(each)}"
    if origin is dict or annotation is dict:
        return "mapping"
    if hasattr(annotation, "__metadata__"):
        return _kind(origin or inner[0])
    return _ONE[annotation]


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for one in get_args(annotation) if (found := _model_of(one))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, tuple | list) and len(str(value)) > _MOST_CHARACTERS:
        return f"{len(value)} entries"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(_value(one).strip('`') for one in value)}]`"
    return f"`{value:.4g}`" if isinstance(value, float) else f"`{json.dumps(value, ensure_ascii=False)}`"


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def draw_pictures() -> None:
    """Write `docs/images/*.png`: pairs of scikit-image's photos, drawn by the preview."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    with tempfile.TemporaryDirectory() as place:
        photos, clips = Path(place, "photos"), Path(place, "clips")
        photos.mkdir()
        clips.mkdir()
        for name in PHOTOS:
            (photos / name).write_bytes((folder / name).read_bytes())
            _as_clip(photos / name, clips)
        shards = {of_clips: str(Path(place, f"shards of {source.name}")) for of_clips, source in ((False, photos), (True, clips))}
        pack(str(photos), shards[False], labels="none")
        pack(str(clips), shards[True], labels="none", clips=True)
        others = [name for name, task in own_tasks().items() if _pictured(task())]
        single = [name for name in others if own_tasks()[name].frames == 1]
        sheets = [("pairs", FOUR, 3), ("gallery", single, 1), ("views", VIEWS, 1), *((task, [task], 1) for task in others)]
        for name, shown, rows in sheets:
            frames = max(own_tasks()[task].frames for task in shown)
            document = {
                "name": name,
                "seed": 38,  # which shows three different turns, and a jigsaw with and one without colour
                "corpus": {"shards": shards[frames > 1], "frames": frames if frames > 1 else None},
                "image": {"size": SIZE, "scale": [0.3, 0.8]},
                "tasks": {task: {} for task in shown},
                "engine": "cpu",
            }
            picture = sheet(parse_recipe(document), rows)
            small = picture.quantize(COLOURS.get(name, FEWER_COLOURS), kmeans=_ROUNDS)
            small.save(ROOT / "docs" / "images" / f"{name}.png", optimize=True)


def _as_clip(photo: Path, folder: Path) -> None:
    """Three frames, in which the view wanders over the photo."""
    from PIL import Image

    with Image.open(photo) as whole:
        width, height = whole.width * 3 // 5, whole.height * 4 // 5
        for frame in range(3):
            left, top = whole.width * frame // 5, whole.height * frame // 12
            whole.crop((left, top, left + width, top + height)).save(folder / f"{photo.stem}.{frame}.png")


def main() -> None:
    """Bring pages and pictures up to date."""
    for page in parts():
        text = rebuilt(page)
        (ROOT / page).write_text(text)
    draw_pictures()


if __name__ == "__main__":
    main()
