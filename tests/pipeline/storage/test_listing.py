"""Patterns that cannot be shards are refused with what to write instead; brace patterns are counted before they are expanded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.storage import expand
from pipeline.storage.braces import count_names, expand_braces
from pipeline.storage.listing import _check_patterns

_PATTERNS = st.recursive(
    st.sampled_from(["a", "", "b7", "{3..5}", "{09..11}", "{1..9..3}", "{5..-2}"]),
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "{" + ",".join(parts) + "}")
        | st.lists(inner, min_size=1, max_size=3).map("".join)
    ),
    max_leaves=8,
)


@given(_PATTERNS)
def test_names_are_counted_without_being_made(pattern: str) -> None:
    assert count_names(pattern) == len(list(expand_braces(pattern)))


@given(st.text("ab{},.\\0129-\0", max_size=20))
def test_no_pattern_stands_for_more_names_than_were_counted(pattern: str) -> None:
    try:
        names = list(expand_braces(pattern))
    except ValueError:
        return
    assert len(names) <= count_names(pattern)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("pipe:cat a.tar", "commands are not run: name the file or URL itself"),
        ("a.tar::b.tar", "`::` joins nothing here: give several shards as a list"),
        ("simplecache::s3://b/a.tar", "`::` joins nothing here"),
        ("$DATA/a.tar", "variables \\(`\\$`\\) are not expanded"),
        ("s-{000000..99999999}.tar", r"its braces stand for 1e\+08 names, more than the 1,000,000 that are read"),
        ("a\0b", "no file has such a name"),
    ],
)
def test_what_others_write_for_shards_is_refused_with_what_to_write(pattern: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        expand(pattern)


def test_a_name_may_hold_what_has_a_meaning_in_patterns(tmp_path: Path) -> None:
    for name in ("pipe:a.tar", "a::b.tar", "$x.tar", "{1..99999999}.tar"):
        (tmp_path / name).touch()
        assert [shard.url for shard in expand(str(tmp_path / name))] == [str(tmp_path / name)]


def test_an_address_in_brackets_joins_nothing() -> None:
    _check_patterns(["http://[::1]:8000/a.tar"])


def test_a_folder_of_folders_of_shards_says_which_pattern_finds_them(tmp_path: Path) -> None:
    (tmp_path / "s" / "0").mkdir(parents=True)
    (tmp_path / "s" / "0" / "0.tar").touch()
    with pytest.raises(UserError, match=r"but its subfolders do: give a pattern, '(.*)'") as refused:
        expand(str(tmp_path / "s"))
    assert [shard.url for shard in expand(str(refused.value).split("'")[-2])] == [str(tmp_path / "s" / "0" / "0.tar")]


def test_shards_in_capitals_and_urls_with_escapes_are_told_from_nothing(tmp_path: Path) -> None:
    (tmp_path / "my shards").mkdir()
    (tmp_path / "my shards" / "A.TAR").touch()
    with pytest.raises(UserError, match=r"rename A\.TAR to A\.tar"):
        expand(str(tmp_path / "my shards"))
    shutil.move(tmp_path / "my shards" / "A.TAR", tmp_path / "my shards" / "A.tar")
    with pytest.raises(UserError, match=f"taken literally: write {tmp_path}/my shards"):
        expand(f"file://{tmp_path}/my%20shards")
