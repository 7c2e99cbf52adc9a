"""Bytes on any storage: local paths and every URL that fsspec opens."""

from pipeline.storage.backends import absolute, is_local, is_writable, join
from pipeline.storage.files import (
    TEMPORARY,
    changed,
    check_writable,
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
from pipeline.storage.secrets import scrubbed, scrubbed_document, unsigned, without_secrets
from pipeline.storage.traffic import bytes_read

__all__ = [
    "TEMPORARY",
    "Listed",
    "absolute",
    "bytes_read",
    "changed",
    "check_writable",
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
    "scrubbed",
    "scrubbed_document",
    "size",
    "unsigned",
    "walk",
    "without_secrets",
    "write_atomic",
]
