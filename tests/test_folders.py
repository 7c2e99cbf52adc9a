"""Folders that should be equal and are not are told apart by what their files say."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shards.writing import TarWriter
from tests.folders import differences


def test_files_that_differ_are_named_with_their_rows_members_and_lines() -> None:
    left = {"a": b"x", "b": b"", "c.bin": b"\xff\0", "d.json": b"{\n 1\n}", "e.parquet": table(0), "f.tar": tar(b"1")}
    right = {"a": b"x", "c.bin": b"\xff\1", "d.json": b"{\n 2\n}", "e.parquet": table(1), "f.tar": tar(b"2")}
    head, only, binary, _, _, *lines = differences(left, right)
    assert head == "two folders that should have the same bytes"
    assert (only, binary) == ("b is only in the left one", "c.bin: 2 bytes, 2 bytes")
    changed = [line.strip() for line in lines if line.strip()[0] in "+-"]
    assert changed[:4] == ["- 1", "+ 2", '-{"row": 0}', '+{"row": 1}']
    assert [line[:9] for line in changed[4:]] == ["-0.png: 6", "+0.png: d"]


def table(row: int) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"row": [row]}), file)
    return file.getvalue()


def tar(content: bytes) -> bytes:
    file = io.BytesIO()
    made = TarWriter(file)
    made.add("0.png", content)
    made.finish()
    return file.getvalue()
