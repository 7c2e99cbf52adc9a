"""WebDataset's rule for names: which members of a tar form a sample, and which of them are images."""

from __future__ import annotations

import re

IMAGES = frozenset(
    name
    for family in (
        "jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff",
        "ppm pgm pbm pnm pam jp2 j2k j2c jpc jpf jpx avif heic heif jxl",
    )
    for name in family.split()
)
"""Extensions of images. Formats that cannot be decoded here are among them: such files are quarantined, not overlooked."""

MASK = "seg.png"
"""The extension of a sample's mask, which is a PNG and no image of the sample."""

UNSAFE = r"[\x00-\x1f\x7f-\x{9f}]|^/|(^|/)\.\.(/|$)"
"""A pattern of what `plain` removes from names, in the syntax of RE2, which pyarrow uses."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_META = re.compile(r"__[^/]*__($|/)")


def split(name: str) -> tuple[str, str] | None:
    """A member's key and extension: the path up to the first dot of its base name, and the rest, lower-cased.

    Returns:
        None for members of no sample: names without an extension or that begin with a dot, and WebDataset's `__meta__`.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or _META.match(name):
        return None
    return folder + slash + stem, extension.lower()


def plain(name: str) -> str:
    """A name that is safe to print and to unpack: control characters are written out, and it stays in its folder.

    A leading `/` is dropped, and `..` between slashes becomes `__`.
    """
    name = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", name)
    return "/".join("__" if part == ".." else part for part in name.lstrip("/").split("/"))


def is_image(extension: str) -> bool:
    """Whether a member of this extension is an image: the last part counts, so that `left.jpg` is one; a mask is none."""
    return extension.rpartition(".")[2] in IMAGES and extension != MASK


def natural(extension: str) -> list[str | int]:
    """The sort key for the natural order of extensions, in which `2.jpg` comes before `10.jpg`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", extension)]


def is_reserved(key: str) -> bool:
    """Whether WebDataset reserves a member's name for itself."""
    return _META.match(key) is not None
