"""What the pictures are drawn with: frames, captions on plates, tints, and a grid of cells written as a PNG."""

import colorsys
import functools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 480  # pixels, the longer side of an image in the grid: captions have one size whatever the image's
GAP = 8
FONT_SIZE = 14
FRAME = 3
MARGIN = 3  # between a caption and the border of its plate
SMALL = 4  # plates; a caption keeps clear of boxes smaller than that, which it could hide
TRUE_COLOUR = (255, 255, 255)
DASH = 6
OPACITY = 0.5  # of a tint


def cell_scale(size: tuple[int, int], longest: int = CELL) -> float:
    """By how much an image of `size` (width, height) is enlarged or shrunk until its longer side is `longest`."""
    return longest / max(size)


def fitted(pixels: np.ndarray, longest: int = CELL) -> tuple[Image.Image, float]:
    """An image `(height, width, 3)` uint8 whose longer side was made `longest` pixels, and by how much."""
    image = Image.fromarray(pixels)
    scale = cell_scale(image.size, longest)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale)))), scale


@functools.cache
def font() -> ImageFont.FreeTypeFont:
    """The one that matplotlib brings along: unlike Pillow's, it has accents, Greek and Cyrillic."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE)


def write_grid(cells: Sequence[Image.Image], path: str | Path, columns: int) -> None:
    """Writes cells as a PNG, row by row.

    Raises:
        ValueError: fewer than one column.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    columns = min(columns, len(cells))
    width = max(cell.width for cell in cells) + GAP
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + GAP for row in rows]
    grid = Image.new("RGB", (columns * width + GAP, sum(heights) + GAP), "white")
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            grid.paste(cell, (GAP + j * width, GAP + sum(heights[:i])))
    grid.save(path, format="PNG")


def frames_with_captions(
    draw: ImageDraw.ImageDraw,
    boxes: np.ndarray,
    colours: Sequence[tuple[int, ...]],
    captions: Sequence[str],
    size: tuple[int, int],
) -> None:
    """Draws boxes in colours; later ones lie on earlier ones.

    Args:
        draw: on what.
        boxes: `(n, 4)` xyxy, pixels; clipped to the image.
        colours: of each box, RGB.
        captions: of each box.
        size: (width, height) of the image, pixels.
    """
    inside = [_inside(box, size) for box in boxes]
    # All frames first, then the captions: none is hidden behind a frame.
    for box, colour in zip(inside, colours, strict=True):
        draw.rectangle(box, outline=colour, width=FRAME)
    plates = [plate_of(draw, caption) for caption in captions]
    obstacles = [box for box, plate in zip(inside, plates, strict=True) if _area(box) < SMALL * plate[0] * plate[1]]
    for box, colour, caption, plate in zip(inside, colours, captions, plates, strict=True):
        corner = free_place(box, plate, size, obstacles)
        obstacles.append([*corner, corner[0] + plate[0], corner[1] + plate[1]])
        caption_on_plate(draw, corner, plate, caption, colour)


def tint(pixels: np.ndarray, coverage: np.ndarray, colour: tuple[int, ...]) -> None:
    """Lays a translucent colour over a part of an image, in place.

    Args:
        pixels: `(height, width, 3)` float32, levels 0 .. 255.
        coverage: `(height, width)`, the share of each pixel that belongs to the part, 0 .. 1; or bool.
        colour: RGB.
    """
    pixels += OPACITY * coverage.astype(np.float32)[..., None] * (np.array(colour, np.float32) - pixels)


def dashed_frame(draw: ImageDraw.ImageDraw, box: list[float]) -> None:
    """White dashes on a thin dark line: seen on any background."""
    x1, y1, x2, y2 = box
    draw.rectangle(box, outline=(0, 0, 0), width=1)
    for y in (y1, y2):
        for x in np.arange(x1, x2, 2 * DASH):
            draw.line((x, y, min(x + DASH, x2), y), fill=TRUE_COLOUR, width=2)
    for x in (x1, x2):
        for y in np.arange(y1, y2, 2 * DASH):
            draw.line((x, y, x, min(y + DASH, y2)), fill=TRUE_COLOUR, width=2)


def titled(image: Image.Image, title: str) -> Image.Image:
    """The image with a title above it, and as wide as the title needs."""
    measure = ImageDraw.Draw(image)
    left, top, right, bottom = measure.multiline_textbbox((0, 0), title, font=font())
    band = int(np.ceil(bottom - top)) + GAP
    whole = Image.new("RGB", (max(image.width, int(np.ceil(right - left))), band + image.height), "white")
    ImageDraw.Draw(whole).multiline_text((-left, -top), title, fill="black", font=font())
    whole.paste(image, (0, band))
    return whole


def _inside(box: np.ndarray, size: tuple[int, int]) -> list[float]:
    """The box, clipped to the image and with its corners in order, so that its frame can be drawn.

    In whole pixels: Pillow would cut 89.9999, which is 90 in float32, down to 89.
    """
    x1, y1, x2, y2 = np.clip(np.round(box), 0, [size[0] - 1, size[1] - 1] * 2).tolist()
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def class_colour(label: int) -> tuple[int, ...]:
    """A vivid colour for each label; the golden ratio keeps neighbours apart."""
    hue = int(label) * 0.618034 % 1
    return tuple(round(255 * level) for level in colorsys.hsv_to_rgb(hue, 0.85, 0.95))


def plate_of(draw: ImageDraw.ImageDraw, text: str) -> tuple[float, float]:
    """Width and height of a caption's plate."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font())
    return right - left + 2 * MARGIN, bottom - top + 2 * MARGIN


def free_place(
    box: list[float], plate: tuple[float, float], size: tuple[int, int], obstacles: Sequence[list[float]]
) -> tuple[float, float]:
    """The top left corner of a plate at its box and inside the image, where it covers the obstacles least."""
    (x1, y1, x2, y2), (width, height) = box, plate
    wanted = [(x1, y1 - height), (x1, y1), (x1, y2), (x1, y2 - height), (x2, y1), (x1 - width, y1), (x2 - width, y2)]
    if y1 < height:
        del wanted[0]  # there is no room above
    places = [
        (max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height)))  # of a text that is too long, the beginning
        for x, y in wanted
    ]

    def covered(place: tuple[float, float]) -> float:
        x, y = place
        return sum(
            max(0, min(x + width, right) - max(x, left)) * max(0, min(y + height, bottom) - max(y, top))
            for left, top, right, bottom in obstacles
        )

    return min(places, key=covered)  # the first of the best


def _area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def caption_on_plate(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    plate: tuple[float, float],
    text: str,
    colour: tuple[int, ...],
) -> None:
    """Text on a plate of its box's colour."""
    (x, y), (width, height) = corner, plate
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    left, top, *_ = draw.textbbox((0, 0), text, font=font())
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    place = (x + MARGIN - left, y + MARGIN - top)
    draw.text(place, text, fill="black" if brightness > 128 else "white", font=font())
