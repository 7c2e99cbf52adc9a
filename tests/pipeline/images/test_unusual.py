"""Files of every odd kind: both engines show what PIL shows, or the reason why not is given in words."""

from __future__ import annotations

import io
import itertools
import struct
import warnings
import zlib
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.engines import Engine
from pipeline.images.check import Header, check_header
from pipeline.images.unusual import UnusualImage
from tests.pipeline.made_images import encode, engine, request, seen_by_pil

SIDE = 64
NEAR = (0.5, 3)
"""Levels of 255, mean and greatest difference from PIL. JPEG decoders round otherwise; the others are equal to a level."""


@pytest.fixture(scope="module", params=["cpu", "dali"])
def machine(request: pytest.FixtureRequest) -> Engine:
    return engine(request.param, size=SIDE)


@cache
def scene(width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """Smooth colours with four squares, no two corners alike: uint8 (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype(np.uint8)
    for (top, left), colour in zip(
        ((8, 8), (40, 8), (8, 40), (40, 40)), ((220, 30, 30), (30, 200, 60), (20, 60, 230), (240, 240, 40))
    ):
        pixels[top : top + 16, left : left + 16] = colour
    return pixels


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L"))


def apart(found: np.ndarray, wanted: np.ndarray) -> tuple[float, int]:
    difference = np.abs(found.astype(int) - wanted)
    return float(difference.mean()), int(difference.max())


def shown(machine: Engine, encoded: bytes) -> np.ndarray | str:
    """The whole image as an engine decodes it, or the reason why it does not."""
    found = check_header(encoded, 10**8)
    if isinstance(found, str):
        return found
    pixels, failures = machine.run(request([encoded]))
    return failures[0] if failures else pixels["image"][0]


# --- files made by hand -----------------------------------------------------------------------------------------------


def bmp(bits: int, data: bytes, height: int = SIDE, masks: bytes = b"", palette: bytes = b"", **odd: Any) -> bytes:
    """A BMP: `compression`, `header` (12 or 40 to 124 bytes) and a `gap` before the pixels may be odd."""
    compression, header, gap = odd.get("compression", 0), odd.get("header", 40), odd.get("gap", 0)
    if header == 12:
        head = struct.pack("<IHHHH", 12, SIDE, height, 1, bits)
    else:
        colours = len(palette) // 4
        head = struct.pack("<IiiHHIIiiII", header, SIDE, height, 1, bits, compression, len(data), 2835, 2835, colours, 0)
        head = head.ljust(header, b"\0") if header == 40 else (head + masks).ljust(header, b"\0")
        masks = masks if header == 40 else b""
    offset = 14 + len(head) + len(masks) + len(palette) + gap
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + head + masks + palette + bytes(gap) + data


def bmps() -> dict[str, bytes]:
    upward = scene()[::-1].astype(np.uint32)
    red, green, blue = (upward[..., k] for k in range(3))
    of_565 = ((red >> 3 << 11) | (green >> 2 << 5) | blue >> 3).astype("<u2").tobytes()
    of_555 = ((red >> 3 << 10) | (green >> 3 << 5) | blue >> 3).astype("<u2").tobytes()
    wide = (red << 16 | green << 8 | blue).astype("<u4").tobytes()
    plain = np.ascontiguousarray(scene()[::-1, :, ::-1]).tobytes()
    indexed = Image.fromarray(scene()).quantize(64)
    colours = np.zeros((64, 4), np.uint8)
    colours[:, 2::-1] = np.array(indexed.getpalette()[: 64 * 3], np.uint8).reshape(-1, 3)
    rows = np.asarray(indexed)[::-1]
    runs = b"".join(
        b"".join(bytes([len(list(run)), value]) for value, run in itertools.groupby(row.tolist())) + b"\0\0" for row in rows
    )
    rgb = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    return {
        "24 bits": bmp(24, plain),
        "24 bits, top down": bmp(24, np.ascontiguousarray(scene()[..., ::-1]).tobytes(), height=-SIDE),
        "24 bits, a gap before the pixels": bmp(24, plain, gap=6),
        "24 bits, OS/2": bmp(24, plain, header=12),
        "16 bits": bmp(16, of_555),
        "16 bits, masks": bmp(16, of_565, compression=3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)),
        "32 bits": bmp(32, wide),
        "32 bits, masks in a header of 52": bmp(32, wide, compression=3, header=52, masks=rgb),
        "32 bits, masks in a header of 124": bmp(32, wide, compression=3, header=124, masks=rgb + struct.pack("<I", 0)),
        "palette": bmp(8, rows.tobytes(), palette=colours.tobytes()),
        "palette, a gap before the pixels": bmp(8, rows.tobytes(), palette=colours.tobytes(), gap=2),
        "palette, run lengths": bmp(8, runs + b"\0\1", compression=1, palette=colours.tobytes()),
        "bilevel": encode(Image.fromarray(scene()).convert("1"), "BMP"),
        "grey": encode(Image.fromarray(scene()).convert("L"), "BMP"),
    }


def png(raw: np.ndarray, depth: int, kind: int, before: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG of rows of bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(b"\0" + row.tobytes() for y, x, dy, dx in passes for row in raw[y::dy, x::dx])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, depth, kind, 0, 0, int(interlaced)))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Grey levels as `bits` bits of a byte each."""
    small = np.unpackbits((values >> (8 - bits))[..., None], axis=-1)[..., -bits:]
    return np.packbits(small.reshape(len(values), -1), axis=1)


def pngs() -> dict[str, bytes]:
    rgb, level = scene(), grey(scene())
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:, : SIDE // 2] = 0
    wide = (rgb.astype(np.uint16) * 257).astype(">u2")
    clear = struct.pack(">I", 6) + b"tRNS" + struct.pack(">HHH", 220, 30, 30)
    clear += struct.pack(">I", zlib.crc32(clear[4:]))
    picture = Image.fromarray(rgb)
    return {
        "2 bits": png(packed(level, 2), 2, 0),
        "4 bits": png(packed(level, 4), 4, 0),
        "16 bits": png(wide, 16, 2),
        "alpha": png(np.dstack([rgb, alpha]), 8, 6),
        "grey and alpha": png(np.dstack([level, alpha]), 8, 4),
        "palette of 4 bits": encode(picture.quantize(16), "PNG", bits=4),
        "palette, a clear colour": encode(picture.quantize(64), "PNG", transparency=0),
        "a clear colour": png(rgb, 8, 2, clear),
        "interlaced": png(rgb, 8, 2, interlaced=True),
        "interlaced, 16 bits": png(wide, 16, 2, interlaced=True),
        "bytes after its end": png(rgb, 8, 2) + bytes(700),
    }


def without(jpeg: bytes, marker: int) -> bytes:
    """A JPEG without the segments of a kind."""
    kept, at = jpeg[:2], 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        kept += b"" if jpeg[at + 1] == marker else jpeg[at:end]
        at = end
    return kept + jpeg[at:]


def jpegs() -> dict[str, bytes]:
    smooth = Image.fromarray(scene()).resize((8, 8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    cmyk, plain = encode(smooth.convert("CMYK"), "JPEG", quality=95), encode(smooth, "JPEG", quality=95, subsampling=0)
    adobe, turned = cmyk.index(b"Adobe"), Image.Exif()
    turned[274] = 6
    lone = encode(smooth.convert("L"), "JPEG", quality=95)
    sampling = lone.index(b"\xff\xc0") + 11
    return {
        "rgb": encode(smooth, "JPEG", keep_rgb=True, quality=95),
        "rgb by its letters": without(without(encode(smooth, "JPEG", keep_rgb=True, quality=95), 0xEE), 0xE0),
        "cmyk by Adobe": cmyk,
        "ycck": cmyk[: adobe + 11] + b"\2" + cmyk[adobe + 12 :],
        "cmyk, nothing of Adobe": without(cmyk, 0xEE),
        "cmyk, nothing of Adobe, turned": without(encode(smooth.convert("CMYK"), "JPEG", quality=95, exif=turned), 0xEE),
        "grey, odd sampling": lone[:sampling] + b"\x22" + lone[sampling + 1 :],
        "restarts": encode(smooth, "JPEG", quality=95, subsampling=0, restart_marker_blocks=3),
        "fill bytes": plain[:2] + b"\xff\xff\xff" + plain[2:],
        "progressive": encode(smooth, "JPEG", quality=95, progressive=True),
        "a film after it": plain + b"\0\0\0\x18ftypmp42" + bytes(9000),
        "two pictures": encode(smooth, "MPO", save_all=True, append_images=[smooth.rotate(90)]),
    }


def tiff(pixels: np.ndarray, photometric: int, bits: int, **odd: Any) -> bytes:
    """An uncompressed TIFF of one strip, unless `data` and `compression` say otherwise; pixels (h, w) or (h, w, samples)."""
    samples, order = (1 if pixels.ndim == 2 else pixels.shape[2]), odd.get("order", "<")
    data = odd.get("data", pixels.tobytes())
    width = odd.get("width", pixels.shape[1])
    entries = [(256, 4, (width,)), (257, 4, (len(pixels),)), (258, 3, (bits,) * samples), (259, 3, (odd.get("compression", 1),))]
    entries += [(262, 3, (photometric,)), (273, 4, (None,)), (274, 3, (odd.get("orientation", 1),)), (277, 3, (samples,))]
    entries += [(278, 4, (len(pixels),)), (279, 4, (len(data),)), (284, 3, (odd.get("planar", 1),))]
    entries += [(339, 3, (odd.get("form", 1),) * samples), *odd.get("more", ())]
    entries.sort()
    tail, at = b"", 8 + 2 + 12 * len(entries) + 4
    length = sum(len(values) * {3: 2, 4: 4}[kind] for _, kind, values in entries if len(values) * {3: 2, 4: 4}[kind] > 4)
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, values in entries:
        numbers = [at + length if value is None else value for value in values]
        body = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(body) > 4:
            body, tail = struct.pack(f"{order}I", at + len(tail)), tail + body
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers if kind else values)) + body.ljust(4, b"\0")
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8) + directory + bytes(4) + tail + data


def tiffs() -> dict[str, bytes]:
    rgb, level, picture = scene(), grey(scene()), Image.fromarray(scene())
    cmyk = np.asarray(picture.convert("CMYK"))
    alpha = np.dstack([rgb, np.full((SIDE, SIDE), 255, np.uint8)])
    return {
        "16 bits rgb": tiff(rgb.astype("<u2") * 257, 2, 16),
        "16 bits rgb, big endian": tiff((rgb.astype(np.uint16) * 257).astype(">u2"), 2, 16, order=">"),
        "cmyk": tiff(cmyk, 5, 8),
        "YCbCr": encode(picture.convert("YCbCr"), "TIFF"),
        "grey and alpha": encode(Image.fromarray(np.dstack([level, level])), "TIFF"),
        "alpha": tiff(alpha, 2, 8, more=[(338, 3, (2,))]),
        "five samples": tiff(np.dstack([rgb, rgb[..., :2]]), 2, 8, more=[(338, 3, (0, 0))]),
        "palette": encode(picture.quantize(64), "TIFF"),
        "bilevel": encode(picture.convert("1"), "TIFF"),
        **{
            f"bilevel, {name}": encode(picture.convert("1"), "TIFF", compression=name)
            for name in ("group3", "group4", "tiff_ccitt")
        },
        **{
            name: encode(picture, "TIFF", compression=name)
            for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd")
        },
        "jpeg": encode(picture, "TIFF", compression="jpeg"),
        "lzw, differences": encode(picture, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
    }


def pnm(magic: bytes, highest: int, values: np.ndarray) -> bytes:
    """A PNM of a highest value, its values as bytes or as digits."""
    scaled = np.rint(values.astype(np.float64) * highest / 255).astype(int)
    if magic in (b"P2", b"P3"):
        body = b"\n".join(b" ".join(b"%d" % value for value in row) for row in scaled.reshape(SIDE, -1))
    else:
        body = scaled.astype(np.uint8 if highest < 256 else ">u2").tobytes()
    return b"%s # by hand\n%d\n# and more\n%d\n%d\n" % (magic, SIDE, SIDE, highest) + body


def pnms() -> dict[str, bytes]:
    rgb, level = scene(), grey(scene())
    highest = (1, 31, 100, 254, 255, 256, 1023, 4095, 65535)
    colours = {f"P6 to {most}": pnm(b"P6", most, rgb) for most in highest}
    levels = {f"P5 to {most}": pnm(b"P5", most, level) for most in highest}
    digits = {
        f"{kind.decode()} to {most}": pnm(kind, most, of) for kind, of in ((b"P2", level), (b"P3", rgb)) for most in (100, 255)
    }
    bits = b"P1\n64 64\n" + b"\n".join(b" ".join(b"%d" % value for value in row) for row in (level < 128).astype(int))
    late = b"P2\n64 64\n255\n# late\n" + b"\n".join(b" ".join(b"%d" % value for value in row) for row in level)
    return {
        **colours,
        **levels,
        **digits,
        "P2, a late comment": late,
        "P1": bits,
        "P4": b"P4\n64 64\n" + np.packbits(level < 128, 1).tobytes(),
    }


def webps() -> dict[str, bytes]:
    picture = Image.fromarray(scene())
    clear = Image.fromarray(np.dstack([scene(), grey(scene())]))
    return {
        "alpha": encode(clear, "WEBP", lossless=True, exact=True),
        "lossy": encode(picture, "WEBP", quality=90),
        "animated": encode(picture, "WEBP", lossless=True, save_all=True, append_images=[picture.rotate(90)]),
    }


KINDS = {"BMP": bmps, "PNG": pngs, "JPEG": jpegs, "TIFF": tiffs, "PNM": pnms, "WebP": webps}
FILES = {f"{kind}, {name}": file for kind, make in KINDS.items() for name, file in make().items()}


def wanted(name: str, encoded: bytes) -> np.ndarray:
    """What PIL shows; of 16-bit grey PNMs, which it hands out in 32 bits, the highest byte."""
    image = Image.open(io.BytesIO(encoded))
    if image.mode == "I":
        return np.repeat(np.rint(np.asarray(image) / 257).astype(np.uint8)[..., None], 3, 2)
    return np.asarray(seen_by_pil(encoded))


@pytest.mark.parametrize("name", FILES)
def test_an_odd_file_shows_what_pil_shows(name: str, machine: Engine) -> None:
    found = shown(machine, FILES[name])
    assert isinstance(found, np.ndarray), found
    bounds = (1.0, 3) if "palette" in name and "TIFF" in name else NEAR
    assert apart(found, wanted(name, FILES[name])) <= bounds, name
    assert found.std() > 20, "a picture, not a grey field"


REFUSED = {
    "GIF": (encode(Image.fromarray(scene()).quantize(16), "GIF"), "a GIF"),
    "AVIF": (encode(Image.fromarray(scene()), "AVIF"), "an AVIF"),
    "JPEG 2000": (encode(Image.fromarray(scene()), "JPEG2000"), "JPEG 2000"),
    "PAM": (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\nabc", "first bytes are 50 37"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
    "TIFF of floats": (tiff(grey(scene()).astype("<f4") / 255, 1, 32, form=3), "pixels of type float32"),
    "TIFF of 32 bits": (tiff(grey(scene()).astype("<u4"), 1, 32), "pixels of type"),
    "TIFF with a sign, 16 bits": (tiff(grey(scene()).astype("<i2"), 1, 16, form=2), "pixels of type int16"),
    "TIFF with a sign, 8 bits": (tiff(grey(scene()).astype(np.int8), 1, 8, form=2), "pixels of type int8"),
    "TIFF in LAB": (encode(Image.fromarray(scene()).convert("LAB"), "TIFF"), "pixels of type LAB"),
    "TIFF, a negative of 12 bits": (
        tiff(grey(scene()), 0, 12, data=bytes(96 * 64)),
        "interpretation 0, 1 samples a pixel of 12 bits",
    ),
    "TIFF, cut": (tiffs()["cmyk"][:-9], "truncated TIFF"),
    "PNM of floats": (b"Pf\n64 64\n-1.0\n" + bytes(4 * 64 * 64), "not a decodable image"),
    "PNM, cut": (pnms()["P6 to 100"][:-9], "cannot be decoded"),
    "BMP, cut": (bmps()["16 bits, masks"][:-9], "cannot be decoded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_engine_shows_is_refused_in_words(name: str, machine: Engine) -> None:
    encoded, words = REFUSED[name]
    found = shown(machine, encoded)
    assert isinstance(found, str), "decoded"
    assert words in found


@pytest.mark.parametrize(("photometric", "bits"), [*itertools.product((0, 1), (1, 2, 4, 8, 16)), (1, 12)])
def test_a_grey_tiff_of_any_depth_is_turned_once_and_no_negative(photometric: int, bits: int, machine: Engine) -> None:
    width, height = 48, 64
    level = grey(scene(width, height))
    seen = np.rint(np.rint(level / 255 * (2**bits - 1)) * 255 / (2**bits - 1)).astype(np.uint8)
    stored = np.rint(level / 255 * (2**bits - 1)).astype(np.uint16)
    stored = (2**bits - 1) - stored if photometric == 0 else stored
    if bits == 16:
        data = stored.astype("<u2").tobytes()
    else:
        places = np.unpackbits(stored.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=-1)[..., 16 - bits :]
        data = np.packbits(places.reshape(height, -1), axis=1).tobytes()
    files = [tiff(level, photometric, bits, data=data, orientation=turn) for turn in range(1, 9)]
    turns = [None, None, *(getattr(Image.Transpose, name) for name in ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM"))]
    turns += [getattr(Image.Transpose, name) for name in ("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")]
    for turn, encoded in enumerate(files, 1):
        upright = Image.fromarray(seen) if turns[turn] is None else Image.fromarray(seen).transpose(turns[turn])
        found = check_header(encoded, 10**8)
        assert isinstance(found, Header), found
        assert (found.width, found.height) == upright.size
        pixels, failures = machine.run(request([encoded], [(0, 0, min(upright.size), min(upright.size))]))
        assert not failures
        square = np.asarray(upright.crop((0, 0, 48, 48)).resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("RGB"))
        assert apart(pixels["image"][0][1:-1, 1:-1], square[1:-1, 1:-1]) <= (1.0, 4), (turn, bits)


@pytest.mark.parametrize("compression", ["group3", "group4", "lzma"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_fax_that_lies_on_its_side_is_turned_once(compression: str, orientation: int, machine: Engine) -> None:
    page = Image.fromarray(scene(SIDE, 48)).convert("1")
    encoded = encode(page, "TIFF", compression=compression, tiffinfo={274: orientation})
    upright = seen_by_pil(encoded)
    found = check_header(encoded, 10**8)
    assert isinstance(found, Header), found
    assert (found.width, found.height) == upright.size
    pixels, failures = machine.run(request([encoded], [(0, 0, 48, 48)]))
    assert not failures
    wanted = np.asarray(upright.crop((0, 0, 48, 48)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    assert apart(pixels["image"][0][1:-1, 1:-1], wanted[1:-1, 1:-1]) <= (1.5, 8)


def test_the_header_check_decodes_nothing_and_keeps_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnusualImage, "window", lambda *_: pytest.fail("decoded"))
    huge = tiff(np.empty((0, 0), np.uint8), 0, 8, data=bytes(100))
    huge = huge.replace(struct.pack("<HHII", 256, 4, 1, 0), struct.pack("<HHII", 256, 4, 1, 60_000))
    huge = huge.replace(struct.pack("<HHII", 257, 4, 1, 0), struct.pack("<HHII", 257, 4, 1, 60_000))
    assert check_header(huge, 10**8) == "60000x60000 is 3600000000 pixels, over image.max_pixels of 100000000"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = check_header(huge, 10**10)
    assert isinstance(found, Header)
    assert found.unusual
    usual = check_header(FILES["TIFF, tiff_lzw"], 10**8)
    assert isinstance(usual, Header)
    assert not usual.unusual


def test_unusual_frames_of_a_clip_are_decoded_in_their_places() -> None:
    files = [FILES["PNM, P6 to 100"], FILES["BMP, 24 bits"], FILES["TIFF, cmyk"], FILES["PNM, P6 to 31"]]
    asked = request(files, frames=2)
    cpu, dali = (engine(name, size=SIDE, frames=2).run(asked)[0]["frames"] for name in ("cpu", "dali"))
    expected = np.stack([np.concatenate([wanted("", file) for file in pair]) for pair in (files[:2], files[2:])])
    assert apart(cpu, expected) <= (0, 0)
    assert apart(dali, expected) <= NEAR
