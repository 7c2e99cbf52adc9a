"""The header check: good files pass with their upright size, everything else is refused in words before a decoder sees it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import PngImagePlugin

from pipeline.images.check import Header, check_header
from pipeline.images.layout import orientation, without_animation
from tests.pipeline.children import run_python
from tests.pipeline.made_images import HEIGHT, WIDTH, encode, engine, good, photo, request, seen_by_pil, turned

ANY = 10**8
AVIF = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + bytes(100)


def header(encoded: bytes) -> Header:
    found = check_header(encoded, ANY)
    assert isinstance(found, Header), found
    return found


def refusal(encoded: bytes, max_pixels: int = ANY) -> str:
    found = check_header(encoded, max_pixels)
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("name", good())
def test_good_files_pass_with_the_size_that_pil_sees(name: str) -> None:
    found = header(good()[name])
    assert (found.width, found.height) == seen_by_pil(good()[name]).size
    assert header(memoryview(good()[name])).height == found.height  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jpeg", ("jpeg", 3, 8)),
        ("cmyk jpeg", ("jpeg", 4, 8)),
        ("grey png", ("png", 1, 8)),
        ("16 bits", ("png", 1, 16)),
        ("alpha", ("png", 4, 8)),
        ("webp", ("webp", 3, 8)),
        ("tiff", ("tiff", 3, 8)),
        ("bmp", ("bmp", 3, 8)),
        ("ppm", ("pnm", 3, 8)),
    ],
)
def test_a_header_tells_format_channels_and_depth(name: str, expected: tuple[str, int, int]) -> None:
    found = header(good()[name])
    assert (found.codec, found.channels, found.bits) == expected


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (b"", "empty file"),
        (b"hello, world\n" * 50, "first bytes are 68 65 6c 6c"),
        (bytes(1000), "first bytes are 00 00"),
        (b"\xff\xd8", "ends inside its header"),
        (b"\xff\xd8\xff", "ends inside its header"),
        (encode(photo(), "GIF"), "a GIF"),
        (AVIF, "an AVIF"),
        (b"RIFF\x08\0\0\0WEBPVP8X", "a damaged WebP"),
        (b"\x89PNG\r\n\x1a\n", "no end chunk"),
        (b"II*\0", "directory lies outside"),
        (b"BM", "a damaged BMP"),
        (b"<html><body>404 not found</body></html>", "HTML"),
        (b"<?xml version='1.0'?><svg/>", "XML"),
        (b"%PDF-1.4 ...", "a PDF"),
        (encode(photo().convert("LAB"), "TIFF"), "pixels of type LAB"),
        (encode(photo().convert("F"), "TIFF"), "pixels of type float32"),
        (encode(photo(), "JPEG2000"), "JPEG 2000"),
        (encode(photo(), "JPEG2000", no_jp2=True), "JPEG 2000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_decoded_is_refused_with_the_reason(encoded: bytes, words: str) -> None:
    assert words in refusal(encoded)


def test_the_extension_plays_no_part() -> None:
    """The check reads only the bytes and is given no name."""
    assert header(good()["png"]).codec == "png"


def test_a_photo_over_the_pixel_cap_is_refused_without_being_decoded() -> None:
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    encoded = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", huge) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    assert refusal(encoded) == "60000x60000 is 3600000000 pixels, over image.max_pixels of 100000000"
    assert refusal(good()["jpeg"], WIDTH * HEIGHT - 1).endswith(f"over image.max_pixels of {WIDTH * HEIGHT - 1}")
    assert isinstance(check_header(good()["jpeg"], WIDTH * HEIGHT), Header)


TRUNCATED = {
    "jpeg": "JPEG",
    "progressive": "JPEG",
    "png": "PNG",
    "webp": "WebP",
    "lossless webp": "WebP",
    "tiff": "TIFF",
    "lzw tiff": "TIFF",
}


@pytest.mark.parametrize("name", TRUNCATED)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_at_any_length(name: str, share: float) -> None:
    whole = good()[name]
    short = whole[: int(share * len(whole))]
    reason = refusal(short)
    if len(short) > 20:
        assert TRUNCATED[name] in reason


def test_a_jpeg_that_is_a_header_only_is_refused() -> None:
    whole = good()["jpeg"]
    assert "ends inside its header" in refusal(whole[: whole.index(b"\xff\xda")])
    assert "no end-of-image" in refusal(whole[: whole.index(b"\xff\xda") + 14])


def test_the_end_marker_of_a_thumbnail_does_not_pass_for_the_photo_s() -> None:
    thumbnail = b"Exif\0\0" + encode(photo(40, 30), "JPEG")
    whole = encode(photo(), "JPEG", exif=thumbnail)
    assert isinstance(check_header(whole, ANY), Header)
    assert "no end-of-image" in refusal(whole[:-2])


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    assert isinstance(check_header(good()["jpeg"] + bytes(100_000), ANY), Header)


def test_jpeg_segments_that_do_not_lead_to_a_scan_are_refused() -> None:
    whole = good()["jpeg"]
    assert "no marker at byte" in refusal(whole[:4] + b"\0\3" + whole[6:])
    padded = whole[:2] + b"\xff\xff\xff" + whole[2:]  # fill bytes are allowed
    assert isinstance(check_header(padded, ANY), Header)


# --- which way is up -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_size_is_that_of_the_upright_photo(format: str, orientation: int) -> None:
    encoded = turned(format, orientation)
    found = header(encoded)
    assert (found.width, found.height) == seen_by_pil(encoded).size
    assert (found.width < found.height) == (orientation in (5, 6, 7, 8))


def exif(*entries: tuple[int, int, int, bytes], order: str = "<", tail: bytes = b"", mark: int = 42) -> bytes:
    """An EXIF block: entries of (tag, type, count, four bytes of value)."""
    block = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", mark, 8, len(entries))
    for tag, kind, count, value in entries:
        block += struct.pack(f"{order}HHI", tag, kind, count) + value
    return block + bytes(4) + tail


ASIDE = (274, 3, 1, struct.pack("<Hxx", 6))
ASIDE_BIG = (274, 3, 1, struct.pack(">Hxx", 6))
OUTSIDE = (271, 2, 50, struct.pack("<I", 5000))
BLOCKS = {
    "little endian": (exif(ASIDE), 6),
    "big endian": (exif(ASIDE_BIG, order=">"), 6),
    "a long": (exif((274, 4, 1, struct.pack("<I", 6))), 6),
    "a long, big endian": (exif((274, 4, 1, struct.pack(">I", 6)), order=">"), 6),
    "twice": (exif(ASIDE, (274, 3, 1, struct.pack("<Hxx", 1))), 6),
    "beside damage": (exif(OUTSIDE, ASIDE, OUTSIDE), 6),
    "a text": (exif((274, 2, 2, b"6\0\0\0")), 1),
    "nothing": (exif((274, 3, 0, struct.pack("<Hxx", 6))), 1),
    "out of range": (exif((274, 3, 1, struct.pack("<Hxx", 9))), 1),
    "zero": (exif((274, 3, 1, bytes(4))), 1),
    "cut short": (exif(ASIDE)[:14], 1),
    "more entries than there are": (exif(ASIDE)[:8] + struct.pack("<H", 90) + exif(ASIDE)[10:], 1),
    "values outside": (exif((274, 4, 9, struct.pack("<I", 5000))), 1),
    "no mark": (exif(ASIDE, mark=7), 1),
    "no order": (b"XX" + exif(ASIDE_BIG, order=">")[2:], 1),
    "empty": (b"", 1),
    "directory outside": (b"II*\0\xff\xff\0\0", 1),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_and_odd_exif_blocks_are_read_as_far_as_they_tell(name: str, format: str) -> None:
    block, orientation = BLOCKS[name]
    if format == "JPEG":
        encoded = good()["jpeg"][:2] + segment(b"Exif\0\0" + block) + good()["jpeg"][2:]
    elif format == "PNG":
        encoded = good()["png"][:33] + chunk(b"eXIf", block) + good()["png"][33:]
    else:
        encoded = webp_with(block)
    found = header(encoded)
    assert found.orientation == orientation
    assert (found.width, found.height) == ((HEIGHT, WIDTH) if orientation == 6 else (WIDTH, HEIGHT))


def test_the_first_exif_block_of_a_jpeg_that_tells_is_the_one_that_counts() -> None:
    blocks = [exif((271, 2, 4, b"abc\0")), exif(ASIDE), exif((274, 3, 1, struct.pack("<Hxx", 1)))]
    encoded = good()["jpeg"][:2] + b"".join(segment(b"Exif\0\0" + block) for block in blocks) + good()["jpeg"][2:]
    assert header(encoded).orientation == 6


@pytest.mark.parametrize("order", "<>")
def test_tiffs_of_both_byte_orders_and_both_sizes_are_read(order: str) -> None:
    pixels = np.asarray(photo())
    for big in (False, True):
        encoded = tiff(pixels, order, big, orientation=6)
        assert (header(encoded).orientation, header(encoded).width, header(encoded).height) == (6, HEIGHT, WIDTH)
        assert "truncated TIFF" in refusal(tiff(pixels, order, big, orientation=1, cut=1))


def test_damaged_tiff_directories_are_refused_in_words() -> None:
    whole = tiff(np.asarray(photo()), "<", False, orientation=1)
    assert "directory lies outside" in refusal(whole[:4] + struct.pack("<I", 10**9) + whole[8:])
    assert "directory lies outside" in refusal(whole[:9] + b"\xff" + whole[10:])  # 65,289 entries
    without_strips = whole.replace(struct.pack("<HH", 273, 4), struct.pack("<HH", 60000, 4))
    assert "does not say where its pixels are" in refusal(without_strips)


# --- a damaged header must not kill the check itself ------------------------------------------------------------------


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
    """Without the check around it, which would catch exceptions."""
    found = orientation(file)
    assert isinstance(found, str) or 1 <= found <= 8
    assert bytes(without_animation(file)).startswith(file[:8])


def test_whatever_a_structure_says_the_check_answers() -> None:
    """In a process of its own, so that a killed decoder is a failed test and not the end of all tests."""
    script = """
        from hypothesis import HealthCheck, given, settings
        from pipeline.images.check import check_header
        from tests.pipeline.images.test_check import FILES

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


# --- animated PNGs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu", "dali"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
@pytest.mark.parametrize("default_image", [False, True])
def test_of_an_animated_png_the_default_image_alone_is_decoded(mode: str, default_image: bool, name: str) -> None:
    plain = photo().convert(mode)
    more = [plain.rotate(90), plain.rotate(180)]
    animated = encode(plain, "PNG", save_all=True, append_images=more, default_image=default_image)
    files = [animated, encode(plain, "PNG")]
    pixels, failures = engine(name).run(request(files))
    assert not failures
    assert np.array_equal(*pixels["image"])
    assert header(animated).encoded == without_animation(animated)
    assert header(files[1]).encoded is files[1], "a file without an animation is not copied"


def test_damage_in_an_animation_never_reaches_a_decoder() -> None:
    whole = encode(photo(), "PNG", save_all=True, append_images=[photo().rotate(90)])
    undamaged = header(whole).encoded
    for kind in (b"acTL", b"fcTL", b"fdAT"):
        at = whole.rindex(kind) + 8
        assert header(whole[:at] + b"\xee\xee" + whole[at + 2 :]).encoded == undamaged


# --- files made by hand -----------------------------------------------------------------------------------------------


def segment(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    buffer = io.BytesIO()
    PngImagePlugin.putchunk(buffer, kind, body)
    return buffer.getvalue()


def with_exif(block: bytes) -> bytes:
    """The photo as a JPEG with this EXIF block."""
    return good()["jpeg"][:2] + segment(b"Exif\0\0" + block) + good()["jpeg"][2:]


def webp_with(block: bytes) -> bytes:
    """The photo with an EXIF chunk after the pixels, in WebP's extended layout."""
    pixels = encode(photo(), "WEBP")[12:]
    size = (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<IB3x", 10, 8) + size
    meta = b"EXIF" + struct.pack("<I", len(block)) + block + bytes(len(block) % 2)
    body = b"WEBP" + extended + pixels + meta
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(pixels: np.ndarray, order: str, big: bool, orientation: int, cut: int = 0) -> bytes:
    """An uncompressed RGB TIFF of one strip."""
    height, width, _ = pixels.shape
    entries = [(256, width), (257, height), (258, (8, 8, 8)), (259, 1), (262, 2), (273, None), (274, orientation)]
    entries += [(277, 3), (278, height), (279, pixels.size)]
    count_form, entry_form, room = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    start = 16 if big else 8
    after = start + struct.calcsize(f"={count_form}") + len(entries) * (4 + 2 * room) + room
    directory = struct.pack(f"{order}{count_form}", len(entries))
    for tag, value in entries:
        if isinstance(value, tuple):
            inside = struct.pack(f"{order}3H", *value)
            place = inside.ljust(8, b"\0") if big else struct.pack(f"{order}I", after)
            directory += struct.pack(f"{order}{entry_form}", tag, 3, 3) + place
        else:
            number = after + 6 if value is None else value
            directory += struct.pack(f"{order}{entry_form}{'Q' if big else 'I'}", tag, 16 if big else 4, 1, number)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(
        f"{order}HHHQ" if big else f"{order}HI", *((43, 8, 0, 16) if big else (42, 8))
    )
    body = head + directory + bytes(room) + struct.pack(f"{order}3H", 8, 8, 8) + pixels.tobytes()
    return body[: len(body) - cut]
