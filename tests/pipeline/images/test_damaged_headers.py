"""A damaged header must not kill the check itself: whatever a structure says, there is an answer."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.layout import orientation, without_animation
from tests.pipeline.children import run_python
from tests.pipeline.images.headers import chunk, header, refusal, with_exif
from tests.pipeline.made_images import good


def test_headers_damaged_at_random_never_kill_or_raise() -> None:
    """In a process of its own, so that a killed decoder is a failed test and not the end of all tests."""
    script = """
        import numpy as np
        from pipeline.images.check import check_header
        from tests.pipeline.made_images import encode, good, photo, turned
        files = [*good().values(), turned("JPEG", 6), turned("TIFF", 6), encode(photo(), "JPEG2000")]
        random = np.random.default_rng(0)
        for file in files:
            for _ in range(400):
                damaged = bytearray(file)
                for at in random.integers(0, min(len(file), 600), random.integers(1, 12)):
                    damaged[at] = random.choice([0, 255, random.integers(256)])
                if random.random() < 0.2:
                    del damaged[random.integers(len(damaged)):]
                check_header(bytes(damaged), 10**7)
        print("survived")
    """
    done = run_python(script)
    assert done.stdout.strip() == "survived", f"{done.returncode}: {done.stderr[-2000:]}"


NUMBERS = st.one_of(st.integers(0, 400), st.integers(0, 2**64 - 1), st.sampled_from([2**31, 2**32 - 1, 2**63, 2**64 - 1]))
TAGS = st.one_of(st.sampled_from([256, 257, 258, 262, 273, 274, 277, 279, 284, 324, 325]), st.integers(0, 65535))


@st.composite
def directories(draw: st.DrawFn) -> bytes:
    """A TIFF, or BigTIFF, whose first directory holds whatever numbers."""
    order, big = draw(st.sampled_from("<>")), draw(st.booleans())
    room, top = ("Q", 2**64) if big else ("I", 2**32)
    entries = draw(st.lists(st.tuples(TAGS, st.integers(0, 20), NUMBERS, NUMBERS), max_size=6))
    said = draw(st.one_of(st.just(len(entries)), NUMBERS)) % (top if big else 2**16)
    place = draw(st.one_of(st.just(16 if big else 8), NUMBERS)) % top
    head = struct.pack(f"{order}HHHQ", 43, 8, 0, place) if big else struct.pack(f"{order}HI", 42, place)
    body = struct.pack(f"{order}{'Q' if big else 'H'}", said)
    for tag, kind, count, value in entries:
        body += struct.pack(f"{order}HH{room}{room}", tag, kind, count % top, value % top)
    return {"<": b"II", ">": b"MM"}[order] + head + body + draw(st.binary(max_size=40))


@st.composite
def pngs(draw: st.DrawFn) -> bytes:
    """A PNG of chunks in any order, some of which lie about their length."""
    kinds = st.sampled_from([b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"IDAT", b"eXIf", b"IEND"])
    body = b"\x89PNG\r\n\x1a\n"
    if draw(st.booleans()):
        sides = draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
        body += chunk(
            b"IHDR", struct.pack(">IIBBBBB", *sides, *draw(st.tuples(*[st.integers(0, 16)] * 2, *[st.integers(0, 2)] * 3)))
        )
    for kind, data, lie in draw(st.lists(st.tuples(kinds, st.binary(max_size=30), st.booleans()), max_size=6)):
        made = chunk(kind, data)
        body += struct.pack(">I", draw(NUMBERS) % 2**32) + made[4:] if lie else made
    return body + chunk(b"IEND", b"")


@st.composite
def webps(draw: st.DrawFn) -> bytes:
    """A WebP of chunks in any order, some of which lie about their length."""
    kinds = st.sampled_from([b"VP8X", b"VP8 ", b"VP8L", b"ANIM", b"ANMF", b"EXIF", b"ALPH"])
    body = b"WEBP" + draw(st.sampled_from([b"", b"VP8X" + struct.pack("<IB9x", 10, 8)]))
    for kind, data, lie in draw(st.lists(st.tuples(kinds, st.binary(max_size=30), st.booleans()), max_size=6)):
        body += kind + struct.pack("<I", draw(NUMBERS) % 2**32 if lie else len(data)) + data
    return b"RIFF" + struct.pack("<I", draw(st.one_of(st.just(len(body)), NUMBERS)) % 2**32) + body


FILES = st.one_of(directories(), pngs(), webps(), directories().map(lambda block: with_exif(block)))


@given(file=FILES)
def test_whatever_a_structure_says_the_walk_through_it_answers(file: bytes) -> None:
    """Without the net that the check spreads below it."""
    found = orientation(file)
    assert isinstance(found, str) or 1 <= found <= 8
    assert bytes(without_animation(file)).startswith(file[:8])


def test_whatever_a_structure_says_the_check_answers() -> None:
    """In a process of its own, so that a killed decoder is a failed test and not the end of all tests."""
    script = """
        from hypothesis import HealthCheck, given, settings
        from pipeline.images.check import check_header
        from tests.pipeline.images.test_damaged_headers import FILES

        @settings(max_examples=400, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(FILES)
        def look(file):
            reason = check_header(file, 10**7)
            assert not (isinstance(reason, str) and "header check failed" in reason), reason

        look()
        print("survived")
    """
    done = run_python(script)
    assert done.stdout.strip() == "survived", f"{done.returncode}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("count", [2**63, 2**64 - 1])
@pytest.mark.parametrize("place", [0, 2**63, 2**64 - 1])
def test_a_bigtiff_of_numbers_that_no_c_integer_holds_is_an_exif_block_that_tells_nothing(count: int, place: int) -> None:
    block = b"II" + struct.pack("<HHHQQ", 43, 8, 0, 16, 1) + struct.pack("<HHQQ", 274, 3, count, place)
    assert header(with_exif(block)).orientation == 1
    assert "directory lies outside" in refusal(block)


def test_an_exception_in_the_check_is_a_reason_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(encoded: bytes) -> int:
        raise OverflowError("a number too large")

    monkeypatch.setattr("pipeline.images.check.orientation", fail)
    assert refusal(good()["jpeg"]) == "the header check failed on it (OverflowError: a number too large)"
