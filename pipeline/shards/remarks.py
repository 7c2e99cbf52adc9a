"""Collects remarks on a corpus that is opened or inspected: samples with several images, labels that are not numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.shards import naming
from pipeline.shards.members import Member, Members

_NUMBERED = re.compile(r"\d+\.[^.]+")


@dataclass
class Remarks:
    """Counts, with an example of each.

    Args:
        several: samples that hold several images.
        example: one of them, its key and its images.
        numbered: its images differ only in a number, as photos of a camera do.
        unread: samples whose `cls` is no class number.
        text: one of them, its key and what its `cls` holds.
    """

    several: int = 0
    example: str = ""
    numbered: bool = False
    unread: int = 0
    text: str = ""

    def add_images(self, members: Members) -> None:
        """Count the samples of a shard that hold several images."""
        rows = np.flatnonzero(_images_beside(members.table.column("others")) & (members.table.column("ext").to_numpy() != ""))
        if len(rows) and not self.several:
            row = members.take(rows[:1]).table.to_pylist()[0]
            exts = [row["ext"], *(part["ext"] for part in row["others"] if naming.is_image(part["ext"]))]
            self.example = f"{row['key']} ({', '.join(exts[:4])}{', ...' if len(exts) > 4 else ''})"
            self.numbered = all(_NUMBERED.fullmatch(ext) for ext in exts)
        self.several += len(rows)

    def add_labels(self, unread: int, text: str) -> None:
        """Count the samples of a shard whose `cls` is no class number."""
        self.unread += unread
        self.text = self.text or text

    def add(self, others: Remarks) -> None:
        """Add the counts of other remarks."""
        if not self.several:
            self.example, self.numbered = others.example, others.numbered
        self.several += others.several
        self.add_labels(others.unread, others.text)

    def sentences(self, chosen: bool = False) -> list[str]:
        """The remarks, a line each.

        Args:
            chosen: the image of each sample was chosen by its extension, or all are frames, so there is no remark on them.
        """
        found = []
        if self.several and not chosen:
            who = _samples(self.several, "holds", "hold")
            line = f"{who} several images, such as {self.example}: only the first is used"
            if self.numbered:
                line += "; a name ends at its first dot, so photos named like IMG.0001.jpg become one sample: pack them anew"
            found.append(f"{line}; `corpus.image` chooses by the extension")
        if self.unread:
            who = _samples(self.unread, "has", "have")
            found.append(
                f"{who} a `cls` that is no class number, such as {self.text}: they have no label; pretraining needs none"
            )
        return found


def _samples(count: int, one: str, several: str) -> str:
    return f"1 sample {one}" if count == 1 else f"{count:,} samples {several}"


def unread_labels(members: Members) -> list[tuple[int, Member]]:
    """The rows without a label that have a `cls`, with that member: it holds -1, or no class number."""
    others = members.table.column("others").combine_chunks()
    rows, parts = pc.list_parent_indices(others), pc.list_flatten(others)
    wanted = pc.equal(pc.struct_field(parts, "ext"), "cls")
    unlabelled = members.labels < 0
    found = zip(rows.filter(wanted).to_pylist(), parts.filter(wanted).to_pylist())
    return [(row, Member(**part)) for row, part in found if unlabelled[row]]


def _images_beside(others: pa.ChunkedArray) -> np.ndarray:
    """Bool (n,): whether there is an image among a sample's further members."""
    whole = others.combine_chunks()
    exts = pc.struct_field(pc.list_flatten(whole), "ext")
    images = pa.array([ext for ext in pc.unique(exts).to_pylist() if naming.is_image(ext)], pa.string())
    rows = pc.list_parent_indices(whole).filter(pc.is_in(exts, images)).to_numpy()
    found = np.zeros(len(others), bool)
    found[rows] = True
    return found
