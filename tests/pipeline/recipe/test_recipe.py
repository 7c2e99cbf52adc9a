"""A recipe is read or refused with a message: every mistake at once, each with its key's path and the nearest known name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.recipe import Recipe, load_recipe, parse_recipe

BASE: dict[str, Any] = {"name": "a", "seed": 0, "corpus": {"shards": "x"}}
TEXT = "name: a\nseed: 0\ncorpus:\n  shards: x\n"


def refusals(**sections: Any) -> list[str]:
    """The lines in which a recipe is refused."""
    with pytest.raises(UserError) as refused:
        parse_recipe({**BASE, **sections}, "r.yaml")
    first, *lines = str(refused.value).splitlines()
    assert first == "r.yaml is refused:"
    return [line.strip() for line in lines]


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "r.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"trainign": {}}, "top level: unknown key 'trainign': did you mean 'training'? known are name, seed, "),
        ({"training": {"epoch": 3}}, "training: unknown key 'epoch': did you mean 'epochs'? known are "),
        ({"training": {"optimizer": {"momentun": 0.9}}}, "training.optimizer: unknown key 'momentun': did you mean 'momentum'?"),
        ({"downstream": {"train": "x", "test": "y", "label": 1}}, "downstream: unknown key 'label': did you mean 'labels'?"),
        ({"downstream": {"train": "x", "test": "y", "head": "deeplab"}}, "downstream: head: it is for `problem: segmentation`"),
        ({"tasks": {"rotaton": {}}}, "tasks.rotaton: unknown task 'rotaton': did you mean 'rotation'? known are amdim, "),
        ({"tasks": {"rotation": {"turn": [0, 1]}}}, "tasks.rotation: unknown key 'turn': did you mean 'turns'?"),
        ({"tasks": {7: {}}}, "tasks.7: unknown task '7': known are "),
        ({"image": {"zzz": 1}}, "image: unknown key 'zzz': known are size, crop, "),
        ({"image": {4: 1}}, "image.4: keys are names, not numbers (given: 4)"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(sections: dict[str, Any], line: str) -> None:
    (found,) = refusals(**sections)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"seed": None}, "seed: needs a whole number (given: nothing)"),
        ({"seed": "five"}, "seed: needs a whole number (given: 'five')"),
        ({"seed": 1.5}, "seed: needs a whole number (given: 1.5)"),
        ({"seed": True}, "seed: needs a whole number (given: True)"),
        ({"seed": -1}, "seed: must be greater than or equal to 0 (given: -1)"),
        ({"seed": 2**63}, f"seed: must be less than {2**63} (given: {2**63})"),
        ({"training": [1]}, "training: needs a mapping (`key: value`) (given: [1])"),
        ({"corpus": "x"}, "corpus: needs a mapping (`key: value`) (given: 'x')"),
        ({"tasks": ["rotation"]}, "tasks: needs a mapping (`key: value`) (given: ['rotation'])"),
        ({"tasks": {"rotation": 3}}, "tasks.rotation: needs a mapping (`key: value`) (given: 3)"),
        ({"image": {"scale": 0.5}}, "image.scale: needs a list (given: 0.5)"),
        ({"image": {"size": "big"}}, "image.size: needs a whole number (given: 'big')"),
        ({"image": {"crop": "centre"}}, "image.crop: must be 'random' or 'center' (given: 'centre')"),
        ({"image": {"scale": [0.5, float("nan")]}}, "image.scale.1: needs a finite number (given: nan)"),
        ({"image": {"scale": [0.5, 0.2]}}, "image: scale [0.5, 0.2]: needs 0 < least <= most <= 1"),
        ({"image": {"ratio": [0, 1]}}, "image: ratio [0.0, 1.0]: needs 0 < least <= most"),
        ({"image": {"std": [1, 1, 0]}}, "image: std [1.0, 1.0, 0.0]: every entry must be above 0"),
        ({"training": {"optimizer": {"lr": float("inf")}}}, "training.optimizer.lr: needs a finite number (given: inf)"),
        ({"training": {"batch": 0}}, "training.batch: must be greater than or equal to 1 (given: 0)"),
        ({"engine": "gpu"}, "engine: must be 'auto', 'cpu' or 'dali' (given: 'gpu')"),
        ({"name": "a/b"}, "name: String should match pattern"),
        ({"tracking": {"tensorboard": "maybe"}}, "tracking.tensorboard: needs true or false (given: 'maybe')"),
        ({"downstream": {"train": "x"}}, "downstream.test: required, and not given"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path_and_itself(sections: dict[str, Any], line: str) -> None:
    (found,) = refusals(**sections)
    assert found.startswith(line)


@pytest.mark.parametrize("value", [3, [], "", " ", ["a", 3], {}, None, True])
@pytest.mark.parametrize(("section", "key"), [("corpus", "shards"), ("downstream", "train")])
def test_one_of_two_kinds_is_refused_in_one_line(section: str, key: str, value: Any) -> None:
    (found,) = refusals(**{section: {"shards": "x"} | {key: value} if section == "corpus" else {"test": "y", key: value}})
    assert found.startswith(f"{section}.{key}: needs a path, a pattern or a URL, or a list of these")


@pytest.mark.parametrize("value", [1.0, 5.0, -1, -0.1, True, None, "lots", [1]])
def test_a_budget_is_a_count_or_a_share_and_never_a_guess(value: Any) -> None:
    (found,) = refusals(failures={"budget": value})
    assert found.startswith("failures.budget: needs a count of samples (0, 1, 2, ...) or a share of them (at least 0, below 1)")


@pytest.mark.parametrize(("value", "least", "most"), [(0, 0, 1), (3, 3, 3), ([2, 5], 2, 5)])
def test_workers_are_a_number_a_range_or_none_at_all(value: Any, least: int, most: int) -> None:
    training = parse_recipe({**BASE, "training": {"workers": value}}).training
    assert (training.least_workers, training.most_workers) == (least, most)


@pytest.mark.parametrize("value", [-1, 1.0, True, [0, 2], [3, 2], [1], "all"])
def test_other_workers_are_refused(value: Any) -> None:
    (found,) = refusals(training={"workers": value})
    assert found.startswith(
        "training.workers: needs a number of workers (1, 2, ...), [least, most], or 0 to train in the command's"
    )


@pytest.mark.parametrize("value", [0, 7, 0.0, 0.25])
def test_a_budget_keeps_its_kind_through_json(value: float) -> None:
    recipe = parse_recipe({**BASE, "failures": {"budget": value}})
    again = Recipe.model_validate(json.loads(recipe.canonical()))
    assert again.failures.budget == value
    assert type(again.failures.budget) is type(value)


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ({"jigsaw": {"grid": 9}}, "tasks.jigsaw.grid: must be less than or equal to 6 (given: 9)"),
        ({"jigsaw": {"grid": 6}}, "tasks.jigsaw: a 6x6 jigsaw on 24 pixels has cells of 4 and patches of 4 pixels; "),
        ({"jigsaw": {"grid": 2, "permutations": 25}}, "tasks.jigsaw: 4 patches have 24 orders, fewer than 25"),
        (
            {"occlusion": {"area": [0.1, 0.9]}},
            "tasks.occlusion: a box of area 0.9 and ratio [0.5, 2.0] can be 1.34 of the image's",
        ),
        ({"occlusion": {"area": [0.5, 1.5]}}, "tasks.occlusion: area [0.5, 1.5]: needs 0 < least <= greatest < 1"),
        ({"occlusion": {"fill": [0, 0, 999]}}, "tasks.occlusion: fill [0, 0, 999]: every channel lies between 0 and 255"),
        ({"rotation": {"turns": [0, 0]}}, "tasks.rotation.turns: repeats a turn"),
        ({"rotation": {"turns": [0, 5]}}, "tasks.rotation.turns.1: must be 0, 1, 2 or 3 (given: 5)"),
        ({"rotation": {"weight": 0}}, "tasks.rotation.weight: must be greater than 0 (given: 0)"),
    ],
)
def test_a_task_that_cannot_work_is_refused_when_the_recipe_is_read(task: dict[str, Any], line: str) -> None:
    (found,) = refusals(tasks=task, image={"size": 24})
    assert found.startswith(line)


def test_every_mistake_is_told_at_once() -> None:
    lines = refusals(seed="x", trainign={}, image={"size": 3}, tasks={"rotation": {"weight": -1}, "jigsaww": {}})
    assert len(lines) == 5


def test_a_seed_is_required() -> None:
    with pytest.raises(UserError, match="seed: required, and not given"):
        parse_recipe({"name": "a", "corpus": {"shards": "x"}})


def test_tasks_without_parameters_take_their_defaults() -> None:
    recipe = parse_recipe({**BASE, "tasks": {"rotation": None, "jigsaw": {}}})
    assert list(recipe.tasks) == ["rotation", "jigsaw"]
    assert recipe.tasks["rotation"].weight == 1.0


def test_a_recipe_is_read_from_yaml_with_overrides(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT + "training: {optimizer: {lr: 1e-3}}\nfailures: {budget: 1e-3}\n")
    recipe = load_recipe(
        path, ["training.epochs=5", "tasks.rotation={turns: [0, 2]}", "image.scale=[0.5, 1.0]", "corpus.shards=y"]
    )
    assert recipe.training.epochs == 5
    assert recipe.training.optimizer.lr == 1e-3
    assert recipe.failures.budget == 1e-3
    assert recipe.tasks["rotation"].turns == (0, 2)  # type: ignore[attr-defined]
    assert recipe.image.scale == (0.5, 1.0)
    assert recipe.corpus.shards == "y"


def test_an_override_of_an_anchored_section_changes_that_one_only(tmp_path: Path) -> None:
    text = TEXT + "training: {optimizer: &fast {lr: 0.5}}\ndownstream: {train: x, test: y, optimizer: *fast}\n"
    recipe = load_recipe(written(tmp_path, text), ["training.optimizer.lr=0.25"])
    assert recipe.downstream is not None
    assert (recipe.training.optimizer.lr, recipe.downstream.optimizer.lr) == (0.25, 0.5)


@pytest.mark.parametrize("override", ["training.epochs", "=5", "", "training..epochs=5", ".seed=1", "seed.=1"])
def test_an_override_that_is_no_key_and_value_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match=r"--set .*: expected key=value, such as training\.epochs=5"):
        load_recipe(written(tmp_path, TEXT), [override])


def test_overrides_are_checked_like_the_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT)
    with pytest.raises(UserError, match="'seed' is not a section"):
        load_recipe(path, ["seed.a=1"])
    with pytest.raises(UserError, match="training: unknown key 'epoch': did you mean 'epochs'"):
        load_recipe(path, ["training.epoch=5"])
    with pytest.raises(UserError, match=r"--set image.scale=\[0.5: not valid YAML"):
        load_recipe(path, ["image.scale=[0.5"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [a\nseed: 0", "is not valid YAML: .*line 2"),
        ("a: 1\n b: 2", "is not valid YAML"),
        (TEXT + "seed: 1\n", "is not valid YAML: 'seed' is given twice.*line 1"),
        (TEXT + "image:\n  size: 32\n  size: 64\n", "'size' is given twice.*line 6"),
        (TEXT + "x: !!python/object/apply:os.system ['echo no']\n", "could not determine a constructor for the tag"),
        (TEXT + "x: !!python/tuple [1]\n", "could not determine a constructor for the tag"),
        ("", "expected a mapping of sections, found nothing"),
        ("- a\n- b\n", "expected a mapping of sections, found a list"),
        ("just words", "expected a mapping of sections, found a text"),
        (b"\xff\xfe\x00 binary", "is not text in UTF-8"),
    ],
)
def test_what_is_not_a_recipe_is_refused_in_one_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        load_recipe(written(tmp_path, text))
    assert "\n" not in str(refused.value)
    assert "python" not in str(refused.value) or "!!python" in str(text)


def test_a_recipe_that_is_not_there_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: No such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder: name the recipe itself"):
        load_recipe(tmp_path)


def test_equal_recipes_are_equal_strings_whatever_their_order_and_what_is_left_out() -> None:
    plain = parse_recipe({**BASE, "tasks": {"rotation": {}, "jigsaw": {"grid": 2, "permutations": 24}}, "image": {"size": 48}})
    spelled = parse_recipe(
        {
            "tasks": {"jigsaw": {"permutations": 24, "grid": 2, "weight": 1}, "rotation": {"turns": [0, 1, 2, 3]}},
            "engine": "auto",
            "image": {"flip": True, "size": 48, "scale": [0.2, 1]},
            "corpus": {"shards": "x"},
            "seed": 0,
            "name": "a",
        }
    )
    assert plain.canonical() == spelled.canonical()
    assert plain.digest() == hashlib.sha256(plain.canonical().encode()).hexdigest()
    other = parse_recipe({**BASE, "seed": 1})
    assert other.digest() != parse_recipe(BASE).digest()


def test_the_canonical_form_of_what_pixels_depend_on_is_pinned() -> None:
    """The identities of rendered corpora and checkpoints are made of it."""
    recipe = parse_recipe({**BASE, "tasks": {"rotation": {"turns": [0, 2]}, "colorization": {}}, "image": {"size": 48}})
    kept = {name: json.loads(recipe.canonical())[name] for name in ("corpus", "engine", "image", "seed", "tasks")}
    assert json.dumps(kept, sort_keys=True, separators=(",", ":")) == (
        '{"corpus":{"image":null,"shards":"x"},"engine":"auto","image":{"crop":"random","flip":true,"max_pixels":100000000,'
        '"mean":[0.485,0.456,0.406],"ratio":[0.75,1.3333333333333333],"reduced":false,"scale":[0.2,1.0],"size":48,'
        '"std":[0.229,0.224,0.225]},'
        '"seed":0,"tasks":{"colorization":{"objective":null,"weight":1.0},'
        '"rotation":{"objective":null,"turns":[0,2],"weight":1.0}}}'
    )


def test_a_recipe_survives_json_and_cannot_be_changed() -> None:
    recipe = parse_recipe({**BASE, "tasks": {"jigsaw": {}, "occlusion": {"fill": [1, 2, 3]}}})
    again = Recipe.model_validate(json.loads(recipe.canonical()))
    assert again == recipe
    assert again.digest() == recipe.digest()
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 5  # type: ignore[misc]


def test_every_field_can_be_explained() -> None:
    """The recipe reference in the docs is made of the schema, which must therefore be one."""
    schema = Recipe.model_json_schema()
    assert {"string", "array"} == {kind["type"] for kind in schema["$defs"]["CorpusSection"]["properties"]["shards"]["anyOf"]}
    assert {"integer", "number"} == {kind["type"] for kind in schema["$defs"]["Failures"]["properties"]["budget"]["anyOf"]}


def test_tasks_of_one_kind_have_names_of_the_users_own_and_a_tasks_own_name_changes_nothing() -> None:
    jigsaw = {"grid": 2, "permutations": 24}
    recipe = parse_recipe({**BASE, "tasks": {"small": {"task": "jigsaw", **jigsaw}, "jigsaw": {}}})
    assert [type(task).__name__ for task in recipe.tasks.values()] == ["Jigsaw", "Jigsaw"]
    again = parse_recipe(json.loads(recipe.canonical()))
    assert again.tasks == recipe.tasks
    assert again.digest() == recipe.digest()
    named, plain = (parse_recipe({**BASE, "tasks": {"jigsaw": more}}) for more in ({"task": "jigsaw"}, {}))
    assert named.digest() == plain.digest()
    assert '"task"' not in plain.canonical()


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ({"small": {"task": "jigsa"}}, "tasks.small.task: unknown task 'jigsa': did you mean 'jigsaw'?"),
        ({"rotation": {"task": "jigsaw"}}, "tasks.rotation: this name is taken; give the `jigsaw` one of your own"),
        ({"crop": {"task": "jigsaw"}}, "tasks.crop: this name is taken"),
        ({"a.b": {"task": "jigsaw"}}, "tasks.a.b: a name of your own begins with a letter and has letters, digits, "),
        ({"small": {"task": "jigsaw", "gird": 2}}, "tasks.small: unknown key 'gird': did you mean 'grid'?"),
    ],
)
def test_names_of_tasks_that_cannot_be_are_refused(tasks: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_recipe({**BASE, "tasks": tasks})
    assert words in str(refused.value)


def test_a_recipe_of_classes_keeps_its_identity_and_one_of_masks_has_another() -> None:
    shards = {"train": "x", "test": "y"}
    plain, named, masks = (
        parse_recipe({**BASE, "downstream": {**shards, **more}})
        for more in ({}, {"problem": "classification"}, {"problem": "segmentation"})
    )
    assert plain.digest() == named.digest() != masks.digest()
    assert not {"problem", "head"} & set(plain.model_dump(mode="json")["downstream"])
