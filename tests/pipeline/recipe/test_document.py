"""Any text is a recipe or is refused with a message, quickly and safely; values from the command line arrive whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.recipe import load_recipe
from pipeline.recipe.document import parse_value, parse_yaml

TEXT = "name: a\nseed: 0\ncorpus: {shards: x}\n"


def loaded(folder: Path, text: str, *overrides: str) -> Any:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000),
        ("+2.5e+2", 250.0),
        (".5e1", 5.0),
        ("-1e2", -100),
        ("1.0", 1.0),
        ("0x1F", 31),
        ("2026-01-02", "2026-01-02"),
        ("2020-13-45", "2020-13-45"),
        ("1e-3x", "1e-3x"),
        ("e3", "e3"),
        ("no", False),
    ],
)
def test_numbers_are_numbers_and_dates_are_texts(text: str, value: Any) -> None:
    for found in (parse_yaml(text), parse_value(text)):
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("runs #2", "runs #2"),
        ("#2", "#2"),
        ("'runs' #2", "'runs' #2"),
        ("*.tar", "*.tar"),
        ("*all", "*all"),
        ("{a,b}.tar", "{a,b}.tar"),
        ("[ab]*.tar", "[ab]*.tar"),
        ("{a,b}/{c,d}.tar", "{a,b}/{c,d}.tar"),
        ("%s", "%s"),
        ("a  b\tc", "a  b\tc"),
        ("|x", "|x"),
        ("", None),
        ("null", None),
        (" 5 ", 5),
        ("[a, 2]", ["a", 2]),
        ("{turns: [0, 2]}", {"turns": [0, 2]}),
        ("'*.tar'", "*.tar"),
        ('"64"', "64"),
        ("!!str 5", "5"),
    ],
)
def test_a_value_from_the_command_line_arrives_whole(text: str, value: Any) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["[0.5", "{a: 1", "'a", "[*.tar, a.tar]", "{a: *.tar}", "!!python/name:os.system", "!x", "a\0"])
def test_what_is_neither_yaml_nor_a_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not valid YAML"):
        parse_value(text)


def laughs(first: str, more: str) -> str:
    """Lines of which each holds the one before ten times."""
    return "\n".join([first, *(f"{b}: &{b} {more % ','.join(['*' + a] * 10)}" for a, b in zip("abcdefgh", "bcdefghi"))])


ATTACKS = (
        (TEXT + "x: !!timestamp 2020-13-45\n", "could not determine a constructor for the tag"),
        (TEXT.replace("0", "9" * 5000), "a number of 5000 digits"),
        (TEXT + "x: " + "[" * 5000 + "]" * 5000, "nested more than 50 levels deep"),
        (TEXT + "x: " + "{a: " * 60 + "}" * 60, "nested more than 50 levels deep"),
        (TEXT + "x0: &x0 []\n" + "\n".join(f"x{i}: &x{i} [*x{i - 1}]" for i in range(1, 60)), "nested more than 50 levels deep"),
        (TEXT.replace("x", '"\\ud800x"'), r"holds the character '\\ud800'"),
        (TEXT.replace("x", '"a\\0b"'), r"holds the character '\\x00'"),
        (TEXT + 'tasks: {"\\e[31m": {}}', r"holds the character '\\x1b'"),
        (TEXT + "training: &t {backbone: {args: *t}}\n", "an alias that holds itself"),
        ("&r {name: a, corpus: *r}", "an alias that holds itself"),
        ("a: &a {<<: *a}", "an alias that holds itself"),
        (TEXT + "x: {&a [b]: 1}", "unhashable key"),
        (TEXT + "x: !!binary '@@@'\n", "could not determine a constructor"),
        (TEXT + "x: !!set {a}\n", "could not determine a constructor"),
        (laughs("a: &a [0,0,0,0]", "[%s]"), "aliases repeat more than 10,000 values"),
        (laughs("a: &a {k: 1}", "{<<: [%s]}"), "aliases repeat more than 10,000 values"),
        (TEXT + "tasks:\n\trotation: {}\n", "indent with spaces, not with tabs"),
        (TEXT.replace("x", "*.tar"), r"a text that begins with one of .* belongs in quotes"),
        (TEXT + "#" * 2**20, "larger than a MiB"),
)  # fmt: skip


@pytest.mark.parametrize(("text", "words"), ATTACKS, ids=[f"{n}: {words[:20]}" for n, (_, words) in enumerate(ATTACKS)])
def test_a_text_that_attacks_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        loaded(tmp_path, text)
    assert "\n" not in str(refused.value)
    assert str(refused.value).isprintable()


def test_many_mistakes_and_long_ones_make_a_short_message(tmp_path: Path) -> None:
    names = "\n".join(f"{'k' * 900}{i}: 1" for i in range(100))
    with pytest.raises(UserError, match="and 80 more") as refused:
        loaded(tmp_path, TEXT + names)
    assert len(str(refused.value)) < 20_000


def test_a_key_unknown_in_a_part_of_a_mixture_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"corpus\.mix\.a: unknown key 'weigth': did you mean 'weight'\? known are shards, weight"
    ):
        loaded(tmp_path, "name: a\nseed: 0\ncorpus: {mix: {a: {shards: x, weigth: 2}}}\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no", "name: needs a text, and YAML takes this for true or false: put it in quotes"),
        ("007", "name: needs a text, and YAML takes this for a number: put it in quotes"),
    ],
)
def test_a_text_that_yaml_takes_for_something_else_is_to_be_put_in_quotes(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        loaded(tmp_path, TEXT.replace("a\n", f"{name}\n", 1))
    assert loaded(tmp_path, TEXT.replace("a\n", f"'{name}'\n", 1)).name == name
    assert loaded(tmp_path, TEXT, f"name='{name}'").name == name


def test_a_date_may_be_a_name_and_an_exponent_a_number_anywhere(tmp_path: Path) -> None:
    text = "name: 2026-01-02\nseed: 1e3\ncorpus: {shards: x}\n"
    recipe = loaded(tmp_path, text, "training.backbone.args={dropout: 1e-1}", "failures.budget=1e-2")
    assert (recipe.name, recipe.seed, recipe.failures.budget) == ("2026-01-02", 1000, 0.01)
    assert recipe.training.backbone.args == {"dropout": 0.1}


def test_a_task_without_a_value_is_asked_for_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected key=value, such as tasks\.rotation=\{\}"):
        loaded(tmp_path, TEXT, "tasks.rotation")


_PIECES = (
    *("name: a", "seed: 0", "corpus: {shards: x}", "tasks: {rotation: {}}", "training: ", "training: {backbone: {args: "),
    *("corpus: ", "mix: ", "\n", "\n  ", "\t", "? ", "- ", ": ", ", ", "[", "]", "{", "}", "&a ", "*a", "<<: ", "<<: *a"),
    *("!!int ", "!!float ", "!!map ", "!x ", "'", '"', '"\\ud800"', '"\\0"', "# ", "|\n", ">\n", "---\n", "...\n", "%YAML 1.1\n"),
    *("1e999", "1:2", "0x", "0b2", "2020-13-45", ".nan", ".inf", "9" * 40, "null", "~", "\u2028", "\x85", "é", "\U0001f600"),
)
_KEYS = ("corpus.shards", "training.backbone.args.a", "tasks", "corpus.mix.a.b")
_TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(_PIECES), max_size=30).map("".join))


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    folder = tmp_path_factory.mktemp("recipes")

    def run(text: str, *overrides: str) -> None:
        (folder / "r.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            load_recipe(folder / "r.yaml", overrides).digest()
        except UserError:
            return

    return run


@settings(max_examples=400)
@given(text=_TEXTS)
def test_any_text_is_a_recipe_or_a_mistake_in_words(read: Callable[..., Any], text: str) -> None:
    read(text)
    read(TEXT + text)


@settings(max_examples=400)
@given(key=st.one_of(st.text(max_size=20), st.sampled_from(_KEYS)), text=_TEXTS)
def test_any_override_is_a_recipe_or_a_mistake_in_words(read: Callable[..., Any], key: str, text: str) -> None:
    read(TEXT, f"{key}={text}", text)


def test_what_attacks_takes_neither_time_nor_memory(tmp_path: Path) -> None:
    """In a process of 200 MB beyond what the imports take: 8^9 names by braces, and 10^8 by a range."""
    script = """
import resource, sys
from pipeline.errors import UserError
from pipeline.recipe import load_recipe
from pipeline.storage import expand
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 200 * 2**20,) * 2)
deep = "{" * 3000 + "a" + "}" * 3000
for pattern in ("{a,b,c,d,e,f,g,h}" * 9, "s-{000000..99999999}.tar", "{a,{b,c}{1..99999}}{1..9999}", deep):
    open(sys.argv[1], "w").write(f"name: a\\nseed: 0\\ncorpus: {{shards: '{pattern}'}}")
    try:
        expand(load_recipe(sys.argv[1]).corpus.shards)
    except UserError as error:
        print(len(str(error)) < 300)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "r.yaml")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.split() == ["True"] * 4, done.stderr
