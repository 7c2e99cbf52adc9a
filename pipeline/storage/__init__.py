"""Bytes on any storage: local paths and every URL that fsspec opens."""

from pipeline.storage.backends import absolute, is_local, is_writable, join
from pipeline.storage.files import (
    TEMPORARY,
    exists,
    make_folder,
    open_seekable,
    read_all,
    read_range,
    read_ranges,
    remove,
    size,
    walk,
    write_atomic,
)
from pipeline.storage.leftovers import discard_unfinished
from pipeline.storage.listing import Listed, expand, names

__all__ = [
    "TEMPORARY",
    "Listed",
    "absolute",
    "discard_unfinished",
    "exists",
    "expand",
    "is_local",
    "is_writable",
    "join",
    "make_folder",
    "names",
    "open_seekable",
    "read_all",
    "read_range",
    "read_ranges",
    "remove",
    "size",
    "walk",
    "write_atomic",
]
