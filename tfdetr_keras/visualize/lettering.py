"""Text in pictures: fonts, lines that are made to fit a width, and tags, which are texts on plates."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
from PIL import ImageDraw, ImageFont

FONT_SIZE, SMALL_FONT_SIZE = 14, 11
MARGIN = 3  # pixels between a text and the border of its plate


@functools.cache
def font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont:
    """Gives the font that matplotlib brings along: unlike Pillow's, it has accents, Greek and Cyrillic."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def text_width(text: str, size: int = FONT_SIZE) -> float:
    """Measures a line of text, in pixels."""
    return font(size).getlength(text)


def line_height(size: int = FONT_SIZE) -> int:
    """Gives the height of a line, pixels, whatever its letters."""
    return sum(font(size).getmetrics())


def shortened(text: str, width: float, size: int = FONT_SIZE) -> str:
    """Leaves out the middle of a text that is wider than `width` pixels: names differ at their ends."""
    text = " ".join(text.split())  # on one line
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if text_width(short, size) <= width:
            return short
    return "…"


def wrapped(text: str, width: float, size: int = FONT_SIZE) -> list[str]:
    """Breaks a text between its words into lines of at most `width` pixels; a longer word has its own line."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def plate_of(text: str, size: int = FONT_SIZE) -> tuple[int, int]:
    """Gives width and height of a tag's plate, pixels."""
    return int(text_width(text, size)) + 1 + 2 * MARGIN, line_height(size) + MARGIN


def tag_on_plate(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: tuple[int, ...],
    size: int = FONT_SIZE,
) -> None:
    """Writes a text on a plate of the colour of what it names; `corner` is the plate's, at the top left."""
    (x, y), (width, height) = corner, plate_of(text, size)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    draw.text((x + MARGIN, y + MARGIN // 2), text, fill=ink_on(colour), font=font(size))


def ink_on(colour: tuple[int, ...]) -> tuple[int, int, int]:
    """Gives black or white, whichever is told from a colour more easily."""
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if brightness > 128 else (255, 255, 255)
