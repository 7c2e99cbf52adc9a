"""The tar walker finds what `tarfile` finds, and passes over no damage."""

from __future__ import annotations

import gzip
import io
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ShardError
from pipeline.shards.tar import TarMember, walk

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=150).filter(
    lambda name: name.strip("/") and not name.endswith("/")
)


def tar_of(members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def walked(data: bytes) -> list[TarMember]:
    return list(walk(io.BytesIO(data), "x.tar", len(data)))


FILES = [("a.jpg", b"A" * 700), ("a.cls", b"3"), ("b.jpg", b"B" * 512), ("c.jpg", b"")]


@settings(max_examples=60)
@given(
    members=st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_every_body_is_where_the_walk_says(members: list[tuple[str, bytes]], format: int) -> None:
    data = tar_of(members, format)
    assert [(name, data[offset : offset + size]) for name, offset, size in walked(data)] == members


def test_ustar_prefixes_are_joined() -> None:
    name = "f" * 90 + "/" + "g" * 90 + ".jpg"
    assert [member.name for member in walked(tar_of([(name, b"x")], tarfile.USTAR_FORMAT))] == [name]


@pytest.mark.parametrize("data", [bytes(1024), bytes(10240)], ids=["two end blocks", "a padded end"])
def test_an_empty_tar_has_no_members(data: bytes) -> None:
    assert walked(data) == []


def test_a_file_of_no_bytes_is_no_tar() -> None:
    with pytest.raises(ShardError, match=r"x\.tar: is empty: 0 bytes"):
        walked(b"")


def test_links_are_the_files_that_they_stand_for() -> None:
    links = [
        ("d/hard.jpg", tarfile.LNKTYPE, "d/a.jpg"),
        ("d/soft.jpg", tarfile.SYMTYPE, "a.jpg"),
        ("e/up.jpg", tarfile.SYMTYPE, "../d/a.jpg"),
    ]
    links += [
        ("e/twice.jpg", tarfile.SYMTYPE, "up.jpg"),
        ("gone.jpg", tarfile.SYMTYPE, "no.jpg"),
        ("out.jpg", tarfile.SYMTYPE, "/d/a.jpg"),
    ]
    links += [("to-a-folder", tarfile.SYMTYPE, "d"), ("later.jpg", tarfile.SYMTYPE, "z.jpg"), ("d", tarfile.DIRTYPE, "")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, target in [("d/a.jpg", tarfile.REGTYPE, ""), *links, ("z.jpg", tarfile.REGTYPE, "")]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 5 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(name[:5].encode()))
    data = buffer.getvalue()
    found = {
        member.name: data[member.offset : member.offset + member.size] if member.size >= 0 else None for member in walked(data)
    }
    assert found == {
        **dict.fromkeys(("d/a.jpg", "d/hard.jpg", "d/soft.jpg", "e/up.jpg", "e/twice.jpg"), b"d/a.j"),
        **dict.fromkeys(("z.jpg", "later.jpg"), b"z.jpg"),
        **dict.fromkeys(("gone.jpg", "out.jpg", "to-a-folder")),
    }


def test_absolute_and_parent_names_stay_as_they_are() -> None:
    names = ["/etc/passwd.jpg", "../../up.jpg", "./here.jpg"]
    assert [member.name for member in walked(tar_of([(name, b"") for name in names], tarfile.GNU_FORMAT))] == names


def test_names_that_are_not_utf8_are_written_out() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo("caf\xe9.jpg"))
    assert [member.name for member in walked(buffer.getvalue())] == ["caf\\xe9.jpg"]


@given(cut=st.integers(1, 512 * 8 - 1))
def test_a_tar_cut_anywhere_before_its_end_is_refused_with_a_byte(cut: int) -> None:
    with pytest.raises(ShardError, match=r"byte|not a tar"):
        walked(tar_of(FILES)[:cut])


def test_a_body_cut_short_is_named() -> None:
    with pytest.raises(ShardError, match=r"truncated: 'a\.jpg' at byte 0 goes on to byte 1536, and the file ends at byte 900"):
        walked(tar_of(FILES)[:900])


@pytest.mark.parametrize("header", [1536, 2560, 3584])
@pytest.mark.parametrize("damage", [b"\xff" * 40, bytes(512)], ids=["garbage", "zeros"])
def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(header: int, damage: bytes) -> None:
    data = bytearray(tar_of(FILES))
    assert data[header : header + 1] in (b"a", b"b", b"c"), "a header begins here"
    data[header : header + len(damage)] = damage
    if header == 3584 and not any(damage):
        assert [member.name for member in walked(bytes(data))] == [
            "a.jpg",
            "a.cls",
            "b.jpg",
        ]  # no body after it: an end like any other
        return
    with pytest.raises(ShardError, match=r"byte \d+"):
        walked(bytes(data))


def test_tars_joined_end_to_end_are_refused() -> None:
    with pytest.raises(ShardError, match="data at byte 10240, after the end-of-archive block"):
        walked(tar_of(FILES) * 2)


@settings(max_examples=150)
@given(place=st.integers(0, 512 * 9), value=st.integers(0, 255))
def test_a_changed_byte_never_hangs_or_escapes_as_another_error(place: int, value: int) -> None:
    data = bytearray(tar_of(FILES))
    data[place] = value
    with suppress(ShardError):
        assert all(offset + size <= len(data) for _, offset, size in walked(bytes(data)))


def test_a_negative_size_is_refused() -> None:
    data = bytearray(tar_of(FILES))
    data[124:136] = b"\xff" * 11 + b"\x00"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with pytest.raises(ShardError, match="negative size"):
        walked(bytes(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(tar_of(FILES)), "compressed with gzip"),
        (b"BZh91AY", "compressed with bzip2"),
        (b"<html>" + b"x" * 2000, "not a tar"),
        (b"short", "not a tar"),
    ],
    ids=["gzip", "bzip2", "page", "short"],
)
def test_what_is_no_plain_tar_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ShardError, match=words):
        walked(data)


def test_no_body_is_read(tmp_path: Path) -> None:
    class Counting(io.FileIO):
        count = 0

        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            Counting.count += len(data)
            return data

    path = tmp_path / "big.tar"
    path.write_bytes(tar_of([(f"{n}.jpg", bytes(1_000_000)) for n in range(10)]))
    with Counting(path) as file:
        assert len(list(walk(file, "big.tar", path.stat().st_size))) == 10
    assert Counting.count < 50_000


def block(kind: bytes, size: int, name: bytes = b"x") -> bytes:
    """A header of a kind that `tarfile` itself would not write; sizes that octal digits do not hold in base 256."""
    head = bytearray(512)
    head[: len(name)], head[156:157], head[257:265] = name, kind, b"ustar  \0"
    head[124:136] = b"\x80" + size.to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [2 * 2**20, 200 * 2**30, 2**80])
def test_a_name_of_200_gb_is_a_damaged_header(kind: bytes, size: int) -> None:
    whole = tar_of(FILES[:1])
    with pytest.raises(ShardError, match=rf"damaged header before byte 2048: a name or pax header of {size} bytes"):
        walked(whole[:1536] + block(kind, size) + bytes(2048))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_chain_of_headers_is_a_damaged_header(kind: bytes) -> None:
    with pytest.raises(ShardError, match="too many headers before one member"):
        walked(block(kind, 0) * 5000 + tar_of(FILES))
    assert len(walked((block(kind, 9) + b"9 path=a\n".ljust(512, b"\0")) * 5 + tar_of(FILES))) == len(FILES)


@settings(max_examples=100)
@given(
    blocks=st.lists(
        st.one_of(
            st.builds(block, st.sampled_from([b"0", b"5", b"L", b"K", b"x", b"g", b"S"]), st.integers(0, 2**81)),
            st.binary(min_size=512, max_size=512),
            st.sampled_from(
                [b"30 GNU.sparse.map=1,2,3,4,5,6\n", b"22 GNU.sparse.size=9\n", b"12 size=abc\n", b"9999 path=a\n"]
            ).map(lambda text: text.ljust(512, b"\0")),
        ),
        max_size=8,
    )
)
def test_headers_of_any_kind_and_size_never_escape_as_another_error(blocks: list[bytes]) -> None:
    with suppress(ShardError):
        walked(b"".join(blocks) + bytes(1024))
