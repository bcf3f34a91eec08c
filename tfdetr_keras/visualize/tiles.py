"""Composition of a picture from drawn images: the text above each, the legend of lines and colours, and the grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from tfdetr_keras.visualize.drawing import Crowding, dashed_frame, solid_frame
from tfdetr_keras.visualize.lettering import line_height, shortened, text_width, wrapped, write

GAP = 8
NARROWEST = 240  # pixels, of the texts above an image
SAMPLE = (26, 16)  # pixels, of a legend's sample
SWATCH = (12, 12)
MOST_CLASSES = 24  # in the key of a picture

Paint = Callable[[Image.Image, list[int]], None]
Entry = tuple[Paint, tuple[int, int], str]  # how its sample is drawn into a box, its size, and what it means


def solid(text: str, colour: tuple[int, ...] = (110, 110, 110)) -> Entry:
    """Make a legend entry for solid frames."""
    return lambda image, box: solid_frame(ImageDraw.Draw(image), box, colour), SAMPLE, text


def dashed(text: str, colour: tuple[int, ...] = (255, 255, 255)) -> Entry:
    """Make a legend entry for dashed frames."""
    return lambda image, box: dashed_frame(ImageDraw.Draw(image), box, colour), SAMPLE, text


def filled(text: str, colour: tuple[int, ...]) -> Entry:
    """Make a legend entry for a colour."""
    return lambda image, box: ImageDraw.Draw(image).rectangle(box, fill=colour), SWATCH, text


def key_of_classes(names: Sequence[str], colours: Sequence[tuple[int, ...]]) -> list[Entry]:
    """Make the key of a crowded image: each class's colour, name and count, the most frequent first.

    Args:
        names: of each object's class.
        colours: of each object.
    """
    counts = Counter(zip(names, colours, strict=True)).most_common()
    entries = [filled(f"{name} × {count}", colour) for (name, colour), count in counts[:MOST_CLASSES]]
    if counts[MOST_CLASSES:]:
        entries.append((lambda image, box: None, (0, 0), f"and {len(counts) - MOST_CLASSES} more classes"))
    return entries


def told_crowding(crowding: Crowding, tags: int) -> list[str]:
    """Return lines that say how many tags were left out, if any."""
    return [f"no room for {crowding.left_out} of {tags} tags"] if crowding.left_out else []


def tile(image: Image.Image, lines: Sequence[str], name: str | None = None, key: Sequence[Entry] = ()) -> Image.Image:
    """Put texts above an image: its name, shortened if it is long, lines, broken if they are long, and a key.

    Args:
        image: the drawn image.
        lines: texts.
        name: of the image.
        key: what its colours mean.

    Returns:
        The image, or a larger one with it at the bottom left.
    """
    width = max(image.width, NARROWEST)
    texts = [shortened(name, width)] if name else []
    texts += [part for line in lines for part in wrapped(line, width)]
    legend = legend_of(key, width) if key else None
    if not texts and legend is None:
        return image
    band = len(texts) * line_height() + (0 if legend is None else legend.height) + GAP // 2
    right = max([image.width, *(int(text_width(text)) + 1 for text in texts), 0 if legend is None else legend.width])
    whole = Image.new("RGB", (right, band + image.height), "white")
    draw = ImageDraw.Draw(whole)
    for row, text in enumerate(texts):
        write(draw, (0, row * line_height()), text)
    if legend is not None:
        whole.paste(legend, (0, len(texts) * line_height()))
    whole.paste(image, (0, band))
    return whole


def legend_of(entries: Sequence[Entry], width: int) -> Image.Image:
    """Draw samples with their meanings, in as many rows as the width needs."""
    height = max(line_height(), SAMPLE[1]) + 4
    places, x, row = [], 0, 0
    for _, (sample, _), text in entries:
        fitting = shortened(text, width - sample - GAP)
        needed = sample + GAP // 2 + int(text_width(fitting)) + 1
        if x and x + needed > width:
            x, row = 0, row + 1
        places.append((x, row, fitting))
        x += needed + 2 * GAP
    right = max(
        x + sample + GAP // 2 + int(text_width(text)) + 1
        for (x, _, text), (_, (sample, _), _) in zip(places, entries, strict=True)
    )
    strip = Image.new("RGB", (right, (row + 1) * height), "white")
    draw = ImageDraw.Draw(strip)
    for (x, row, text), (paint, (across, down), _) in zip(places, entries, strict=True):
        middle = row * height + height // 2
        if across:
            paint(strip, [x, middle - down // 2, x + across - 1, middle - down // 2 + down - 1])
        write(draw, (x + across + (GAP // 2 if across else 0), middle - line_height() // 2), text)
    return strip


def write_grid(cells: Sequence[Image.Image], path: str | Path, columns: int, legend: Sequence[Entry] = ()) -> None:
    """Write cells as a PNG, row by row, under a legend.

    Raises:
        ValueError: fewer than one column.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    columns = min(columns, len(cells))
    width = max(cell.width for cell in cells) + GAP
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + GAP for row in rows]
    strip = legend_of(legend, max(columns * width - GAP, NARROWEST)) if legend else Image.new("RGB", (0, 0))
    top = GAP + strip.height + (GAP if legend else 0)
    grid = Image.new("RGB", (max(columns * width + GAP, strip.width + 2 * GAP), top + sum(heights)), "white")
    grid.paste(strip, (GAP, GAP))
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            grid.paste(cell, (GAP + j * width, top + sum(heights[:i])))
    grid.save(path, format="PNG")
