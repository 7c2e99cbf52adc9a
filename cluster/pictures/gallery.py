"""Pairs as one self-contained HTML page: a section for each task, with its pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape

from PIL import Image

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; background: #fff }
body { margin: 2.5rem auto; max-width: 75rem; padding: 0 1.5rem }
h1 { margin-bottom: 0 } h2 { border-top: 2px solid #d9dde4; padding-top: 1.2rem; margin: 2.2rem 0 0 }
p { margin: .2rem 0 .8rem; color: #6a7385 } .row { display: flex; flex-wrap: wrap; gap: 1.6rem }
figure { margin: 0 } figure img { vertical-align: top; margin-right: .4rem } figcaption { color: #6a7385; white-space: pre-line }
"""


@dataclass(frozen=True)
class PictureColumn:
    """One task's pictures, or the crops.

    Args:
        headings: one for each picture of a row.
        pictures: for each sample its pictures.
        captions: for each sample.
        about: what the task does and where it comes from, a line each.
    """

    headings: list[str]
    pictures: list[list[Image.Image]]
    captions: list[str]
    about: tuple[str, ...] = ()


def as_html(title: str, facts: str, columns: list[PictureColumn]) -> str:
    """An HTML page with a section for each column, one below the other."""
    parts = [f"<h1>{escape(title)}</h1><p>{escape(facts)}</p>"]
    for column in columns:
        about = "".join(f"<p>{escape(line)}</p>" for line in column.about)
        figures = "".join(
            f"<figure>{''.join(_inside(picture, heading) for picture, heading in zip(pictures, column.headings))}"
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for pictures, caption in zip(column.pictures, column.captions)
        )
        parts.append(f'<h2>{escape(column.headings[0])}</h2>{about}<div class="row">{figures}</div>')
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(parts)}</body></html>\n'


def _inside(picture: Image.Image, what: str) -> str:
    """A picture as HTML that contains its pixels."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img width="{picture.width}" height="{picture.height}" alt="{escape(what)}" src="data:image/png;base64,{data}">'
