"""Text in pictures: fonts, lines that are made to fit a width, and tags, which are texts on plates."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

FONT_SIZE, SMALL_FONT_SIZE = 14, 11
MARGIN = 3  # pixels between a text and the border of its plate


# Unlike Pillow's own font, the one that matplotlib brings along has accents, Greek and Cyrillic.
USUAL_FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@functools.cache
def font(size: int = FONT_SIZE, file: str = USUAL_FONT) -> ImageFont.FreeTypeFont:
    """Open a font, by default the usual one."""
    return ImageFont.truetype(file, size)


@functools.cache
def font_file(text: str) -> str:
    """Find the font for a text: the usual one, or an installed one that has letters which it lacks, e.g. Chinese ones.

    Args:
        text: to be written.

    Returns:
        The file; the usual one if no font has all the letters.
    """
    letters = {ord(letter) for letter in text if not letter.isspace()}
    if letters <= _letters_of(USUAL_FONT):
        return USUAL_FONT
    from matplotlib import font_manager  # which looks through the machine's fonts: seconds, the first time

    # "Last Resort" has all letters, each as a box that tells where in Unicode it is.
    files = (entry.fname for entry in font_manager.fontManager.ttflist if not entry.name.startswith("Last Resort"))
    return next((file for file in files if letters <= _letters_of(file)), USUAL_FONT)


@functools.cache
def _letters_of(file: str) -> frozenset[int]:
    """Return the code points that a font has; none if it cannot be used for drawing, like bitmaps of one size."""
    try:
        font(FONT_SIZE, file), font(SMALL_FONT_SIZE, file)
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def text_width(text: str, size: int = FONT_SIZE) -> float:
    """Return the width of a line of text, pixels."""
    return font(size, font_file(text)).getlength(text)


def write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: tuple[int, ...] | int = (0, 0, 0),
    size: int = FONT_SIZE,
) -> None:
    """Write a line of text; `corner` is the line's top left."""
    place = (corner[0], corner[1] + font(size).getmetrics()[0])  # of all fonts on the line of the usual one
    draw.text(place, text, fill=colour, font=font(size, font_file(text)), anchor="ls")


def line_height(size: int = FONT_SIZE) -> int:
    """Return the height of a line, pixels, whatever its letters."""
    return sum(font(size).getmetrics())


def shortened(text: str, width: float, size: int = FONT_SIZE) -> str:
    """Leave out the middle of a text that is wider than `width` pixels: names differ at their ends."""
    text = " ".join(text.split())  # on one line
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if text_width(short, size) <= width:
            return short
    return "…"


def wrapped(text: str, width: float, size: int = FONT_SIZE) -> list[str]:
    """Break a text between its words into lines of at most `width` pixels; a longer word has its own line."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def plate_of(text: str, size: int = FONT_SIZE) -> tuple[int, int]:
    """Return width and height of a tag's plate, pixels."""
    return int(text_width(text, size)) + 1 + 2 * MARGIN, line_height(size) + MARGIN


def tag_on_plate(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: tuple[int, ...],
    size: int = FONT_SIZE,
) -> None:
    """Write a text on a plate in the colour of what it names; `corner` is the plate's top left."""
    (x, y), (width, height) = corner, plate_of(text, size)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    write(draw, (x + MARGIN, y + MARGIN // 2), text, ink_on(colour), size)


def ink_on(colour: tuple[int, ...]) -> tuple[int, int, int]:
    """Return black or white, whichever stands out more from a colour."""
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if brightness > 128 else (255, 255, 255)
