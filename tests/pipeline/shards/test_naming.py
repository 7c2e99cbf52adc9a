"""Names mean what WebDataset takes them to mean."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from pipeline.shards.naming import UNSAFE, is_image, plain, split

NAMES = st.lists(st.text("ab.-_ ", min_size=1, max_size=6), min_size=1, max_size=4).map("/".join)


@given(NAMES)
def test_keys_and_extensions_are_webdatasets(name: str) -> None:
    named = split(name)
    if not name.rpartition("/")[2].startswith("."):
        assert named == (None if base_plus_ext(name) == (None, None) else base_plus_ext(name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.c/0001.Seg.PNG", ("a/b.c/0001", "seg.png")),
        ("../up.jpg", ("../up", "jpg")),
        ("README", None),
        (".hidden.jpg", None),
        ("cat/._0001.jpg", None),
        ("__meta__", None),
        ("__worker__/x.jpg", None),
    ],
)
def test_names_of_every_sort(name: str, expected: tuple[str, str] | None) -> None:
    assert split(name) == expected


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "left.jpg", "webp", "heic", "gif", "tiff", "pgm", "avif"])
def test_images_are_known_by_the_last_part(extension: str) -> None:
    assert is_image(extension)


@pytest.mark.parametrize("extension", ["", "txt", "json", "cls", "jpg.txt", "xjpg"])
def test_other_members_are_no_images(extension: str) -> None:
    assert not is_image(extension)


@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from(["..", ".", "a", "", "..b", "\x1b[2J", "\0", "\x9b"]), max_size=6).map("/".join)
)
def test_a_plain_name_is_safe_to_print_and_to_unpack(name: str) -> None:
    cleaned = plain(name)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in cleaned)
    assert not cleaned.startswith("/")
    assert ".." not in cleaned.split("/")
    assert plain(cleaned) == cleaned
    assert pc.match_substring_regex(pa.array([name]), UNSAFE)[0].as_py() == (cleaned != name), "both know the same names"


def test_names_that_were_plain_stay_as_they_are() -> None:
    for name in ("./a/b.jpg", "a/..b/c...jpg", "\u5199\u771f\u3000\u00e9\U0001f600.jpg"):
        assert plain(name) == name
    assert plain("../../etc/\x1b[31mred\0.jpg") == "__/__/etc/\\x1b[31mred\\x00.jpg"
