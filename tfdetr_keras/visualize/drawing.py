"""Drawing tools of the pictures: images in the size of a picture, frames, tags, tints and colours."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from tfdetr_keras.visualize.lettering import ink_on, tag_on_plate
from tfdetr_keras.visualize.tags import Wording, placed_tags

CELL = 480  # pixels, the longer side of an image in a grid: tags have one size whatever the image's
ALONE = 960  # pixels, at most, of an image that has a picture for itself
FRAME = 3  # pixels, of a frame's line, of which the innermost is black or white
THIN, HAIR = 40, 16  # pixels, the shorter side of boxes below which the line is thinner, or a single pixel
MANY = 30  # boxes, above which lines are thinner
DASH = 6
OPACITY = 0.5  # of a tint


class Crowding(NamedTuple):
    """The number of a picture's tags that had no room.

    Attributes:
        left_out: tags that are missing.
        nameless: tags that are missing, or have no name.
    """

    left_out: int
    nameless: int


def cell_scale(size: tuple[int, int], longest: int = CELL) -> float:
    """Return the factor that scales an image of `size` (width, height) until its longer side is `longest`."""
    return longest / max(size)


def fitted(pixels: np.ndarray, longest: int = CELL) -> tuple[Image.Image, float]:
    """Scale an image `(height, width, 3)` uint8 until its longer side is `longest` pixels; return the factor, too."""
    image = Image.fromarray(pixels)
    scale = cell_scale(image.size, longest)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale)))), scale


def longest_side(images: Sequence[np.ndarray]) -> int:
    """Return the longer side that images have in a picture: a single one keeps its own size within bounds."""
    return CELL if len(images) > 1 else min(max(*images[0].shape[:2], CELL), ALONE)


def frames_with_tags(
    image: Image.Image,
    boxes: np.ndarray,
    colours: Sequence[tuple[int, ...]],
    wordings: Sequence[Wording],
    dashed: Sequence[bool] | None = None,
    colours_are_classes: bool = True,
) -> Crowding:
    """Draw boxes in colours, with their tags; later boxes lie on earlier ones.

    Args:
        image: to draw on.
        boxes: `(n, 4)` xyxy, pixels; clipped to the image.
        colours: of each box, RGB.
        wordings: of each box's tag.
        dashed: whether each frame is dashed; none is by default.
        colours_are_classes: whether a colour shows the class, so that a tag may leave out the name.

    Returns:
        The number of tags that had no room.
    """
    draw = ImageDraw.Draw(image)
    inside = [_inside(box, image.size) for box in boxes]
    # All frames first, then the tags: none is hidden behind a frame.
    for place, (box, colour) in enumerate(zip(inside, colours, strict=True)):
        if dashed is not None and dashed[place]:
            dashed_frame(draw, box, colour)
        else:
            solid_frame(draw, box, colour, len(inside))
    tags = placed_tags(np.array(inside), wordings, image.size, colours_are_classes)
    for tag in tags:
        tag_on_plate(draw, tag.corner, tag.text, colours[tag.row], tag.size)
    return Crowding(len(inside) - len(tags), len(inside) - sum(tag.is_named for tag in tags))


def solid_frame(draw: ImageDraw.ImageDraw, box: Sequence[float], colour: tuple[int, ...], many: int = 1) -> None:
    """Draw a frame; its innermost line is black or white, so that it is visible on a ground of its own colour.

    Around small boxes, and among many, the line is thinner.

    Args:
        draw: to draw on.
        box: xyxy, whole pixels.
        colour: RGB.
        many: how many boxes the picture has.
    """
    side = min(box[2] - box[0], box[3] - box[1])
    if side >= THIN and many <= MANY:
        draw.rectangle(box, outline=ink_on(colour), width=FRAME)
    draw.rectangle(box, outline=colour, width=1 if side < HAIR else FRAME - 1)


def dashed_frame(draw: ImageDraw.ImageDraw, box: Sequence[float], colour: tuple[int, ...] = (255, 255, 255)) -> None:
    """Draw a frame of dashes with black or white between them, visible on any background."""
    x1, y1, x2, y2 = box
    draw.rectangle(box, outline=ink_on(colour), width=2)
    for y in (y1, y2 - 1):
        for x in np.arange(x1, x2, 2 * DASH):
            draw.rectangle((x, y, min(x + DASH - 1, x2), y + 1), fill=colour)
    for x in (x1, x2 - 1):
        for y in np.arange(y1, y2, 2 * DASH):
            draw.rectangle((x, y, x + 1, min(y + DASH - 1, y2)), fill=colour)


def dashed_frames(image: Image.Image, boxes: np.ndarray) -> None:
    """Draw true boxes `(n, 4)` xyxy, pixels, clipped to the image: dashed, black and white."""
    draw = ImageDraw.Draw(image)
    for box in np.asarray(boxes).reshape(-1, 4):
        dashed_frame(draw, _inside(box, image.size))


def tint(pixels: np.ndarray, coverage: np.ndarray, colour: tuple[int, ...]) -> None:
    """Lay a translucent colour over a part of an image, in place.

    Args:
        pixels: `(height, width, 3)` float32, levels 0 .. 255.
        coverage: `(height, width)`, the share of each pixel that belongs to the part, 0 .. 1; or bool.
        colour: RGB.
    """
    pixels += OPACITY * coverage.astype(np.float32)[..., None] * (np.array(colour, np.float32) - pixels)


def class_colour(label: int) -> tuple[int, ...]:
    """Return a vivid colour for a label; the golden ratio keeps the colours of neighbours apart."""
    hue = int(label) * 0.618034 % 1
    return tuple(round(255 * level) for level in colorsys.hsv_to_rgb(hue, 0.85, 0.95))


def _inside(box: np.ndarray, size: tuple[int, int]) -> list[float]:
    """Return the box, clipped to the image and with its corners in order, so that its frame can be drawn.

    The result is in whole pixels: Pillow would cut 89.9999, which is 90 in float32, down to 89.
    """
    x1, y1, x2, y2 = np.clip(np.round(box), 0, [size[0] - 1, size[1] - 1] * 2).tolist()
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
