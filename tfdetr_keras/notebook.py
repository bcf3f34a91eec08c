"""Results in a notebook: a heading, a small picture and a table, as HTML in which every text is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image

MOST_ROWS = 20
LONGEST = 480  # pixels, the longer side of a picture
MOST_BYTES = 45_000  # of a picture: a third more as text, and a notebook of a few stays small
QUALITIES = (90, 80, 65, 50, 35, 20)  # of JPEG, until it is small enough

_CELL = 'style="text-align:left"'


def page(title: Any, *parts: str) -> str:
    """Join a heading and parts that are HTML already, e.g. from `table` and `picture`; leave out empty ones."""
    return "".join(["<div>", f"<p><b>{html.escape(str(title))}</b></p>", *filter(None, parts), "</div>"])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], most: int = MOST_ROWS) -> str:
    """Lay out rows as a table; if there are more than `most` + 1, count the rest in a last line.

    Args:
        header: names of the columns; empty for a table without a header.
        rows: of cells, whose texts are escaped.
        most: number of rows that are shown.
    """
    rows = list(rows)
    # One more than allowed is rather shown than counted.
    shown = rows if len(rows) <= most + 1 else rows[:most]
    lines = [_row("th", header)] if header else []
    lines += [_row("td", row) for row in shown]
    if rest := len(rows) - len(shown):
        lines.append(f'<tr><td colspan="{max(1, len(shown[0]))}" {_CELL}>… {rest} more</td></tr>')
    return f"<table>{''.join(lines)}</table>" if lines else ""


def picture(image: Image.Image, longest: int = LONGEST) -> str:
    """Embed an image as a JPEG of at most `MOST_BYTES`, if possible.

    Args:
        image: any image.
        longest: largest length of its longer side, pixels; a larger image is reduced to it.
    """
    image = image.convert("RGB")
    image.thumbnail((longest, longest))
    content = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        content = buffer.getvalue()
        if len(content) <= MOST_BYTES:
            break
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(content).decode()}">'


def number(count: int, noun: str) -> str:
    """Return a count in words: `1 object`, `2 objects`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def counted(names: Iterable[str]) -> str:
    """Return the counts of equal names, the most frequent first: `3 circle, 1 square`."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    most = 5  # names in a line
    more = f", {sum(count for _, count in ordered[most:])} of {len(ordered) - most} other classes"
    return ", ".join(f"{count} {name}" for name, count in ordered[:most]) + (more if ordered[most:] else "")


def _row(tag: str, cells: Sequence[Any]) -> str:
    return f"<tr>{''.join(f'<{tag} {_CELL}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
