"""Segments over their images: instances or a panoptic map, each in a translucent colour with its name."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tfdetr_keras.segments import Segments
from tfdetr_keras.visualize.drawing import (
    CELL,
    caption_on_plate,
    class_colour,
    fitted,
    free_place,
    plate_of,
    tint,
    write_grid,
)

# Segments of one class are told apart by how far its colour is mixed with white (> 0) or black (< 0).
SHADES = (0.0, 0.45, -0.4, 0.7, -0.65)
CANDIDATES, ALIKE = 40, 110  # colours that are tried, and levels between two that are told apart
OUTLINE = (255, 255, 255)
CENTRED = 1e-3  # how much room in the wider direction counts, where that in the narrower one is equal


def draw_segments(
    images: Sequence[np.ndarray],
    segments: Sequence[Mapping[str, Any]],
    class_names: Sequence[str] | Mapping[int, str],
    path: str | Path,
    columns: int = 4,
) -> None:
    """Writes a grid of images with their segments as a PNG.

    A segment is a translucent area in its class's colour, in another shade for each of the class, with a thin white
    outline, name and score. Pixels of no segment are left as they are.

    Args:
        images: each `(height, width, 3)` uint8, RGB.
        segments: per image `{"segmentation": (height, width) int32 of ids, "segments_info": […]}`, as
            `post_process_panoptic` and `post_process_instance` return them for the image's size.
        class_names: name of each label, in a list or by label.
        path: the PNG to write.
        columns: images in a row of the grid.

    Raises:
        ValueError: no images, or not one entry of `segments` for each; a map of another size than its image; fewer than
            one column.
    """
    lengths = [len(images), len(segments)]
    if not lengths[0] or len(set(lengths)) > 1:
        raise ValueError(f"images and segments must be as many, at least one, not {lengths}")
    cells = [
        image_of_segments(Segments(found["segmentation"], found["segments_info"], class_names, image))
        for image, found in zip(images, segments, strict=True)
    ]
    write_grid(cells, path, columns)


def image_of_segments(found: Segments, longest: int = CELL) -> Image.Image:
    """Draws the segments of an image, as `draw_segments` does.

    Args:
        found: of the image.
        longest: the picture's longer side, pixels.

    Returns:
        The picture, RGB.

    Raises:
        ValueError: the map has another size than the image.
    """
    if found.segmentation.shape != found.image.shape[:2]:
        raise ValueError(
            f"the map of segments is (height, width) = {found.segmentation.shape}, the image {found.image.shape[:2]}: "
            "give the post-processing the image's size"
        )
    image, _ = fitted(found.image, longest)
    ids = np.asarray(Image.fromarray(found.segmentation).resize(image.size, Image.Resampling.NEAREST))
    rows = list(found)
    colours = _colours([row["label"] for row in rows])
    image = Image.fromarray(_tinted(np.asarray(image), ids, [row["id"] for row in rows], colours))
    _write_names(image, ids, rows, colours)
    return image


def _write_names(
    image: Image.Image, ids: np.ndarray, rows: Sequence[Mapping[str, Any]], colours: Sequence[tuple[int, ...]]
) -> None:
    """Captions in the middle of the segments that hold them, and beside the others."""
    draw = ImageDraw.Draw(image)
    captions = [f"{row['name']} {row['score']:.2f}" for row in rows]
    plates = [plate_of(draw, caption) for caption in captions]
    taken: list[list[float]] = []

    def write(place: int, corner: tuple[float, float]) -> None:
        taken.append([*corner, corner[0] + plates[place][0], corner[1] + plates[place][1]])
        caption_on_plate(draw, corner, plates[place], captions[place], colours[place])

    small = {}
    for place, row in enumerate(rows):
        own = ids == row["id"]
        if (corner := _roomiest(own, plates[place], taken)) is not None:
            write(place, corner)
        elif own.any():
            (y1, x1), (y2, x2) = (end(np.nonzero(own), axis=1).tolist() for end in (np.min, np.max))
            small[place] = [x1 - 1, y1 - 1, x2 + 1, y2 + 1]  # plates are drawn on their border too
    for place, box in sorted(small.items(), key=lambda item: rows[item[0]]["area"]):
        write(place, free_place(box, plates[place], image.size, [*taken, *small.values()]))


def _colours(labels: Sequence[int]) -> list[tuple[int, ...]]:
    """A colour for each segment: its class's, in the next shade for each further segment of the class.

    Where two classes' colours are alike, the one that comes later gets that of another class.
    """
    of_classes: dict[int, tuple[int, ...]] = {}
    for label in dict.fromkeys(labels):
        candidates = [class_colour(label + shift) for shift in range(CANDIDATES)]
        apart = [
            min((math.dist(colour, other) for other in of_classes.values()), default=ALIKE) for colour in candidates
        ]
        of_classes[label] = candidates[next((i for i, far in enumerate(apart) if far >= ALIKE), np.argmax(apart))]
    colours = []
    for place, label in enumerate(labels):
        share = SHADES[labels[:place].count(label) % len(SHADES)]
        towards = 255 if share > 0 else 0
        colours.append(tuple(round(level + abs(share) * (towards - level)) for level in of_classes[label]))
    return colours


def _tinted(
    pixels: np.ndarray, ids: np.ndarray, numbers: Sequence[int], colours: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """The image `(height, width, 3)` uint8 under the segments of the map `ids`, which have numbers and colours."""
    tinted, inside = pixels.astype(np.float32), np.zeros(ids.shape, np.int64)
    for place, (number, colour) in enumerate(zip(numbers, colours, strict=True), start=1):
        own = ids == number
        inside[own] = place
        tint(tinted, own, colour)
    border = np.zeros(ids.shape, bool)
    border[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    border[1:] |= inside[1:] != inside[:-1]
    tinted[border] = OUTLINE
    return tinted.round().astype(np.uint8)


def _roomiest(
    own: np.ndarray, plate: tuple[float, float], taken: Sequence[Sequence[float]]
) -> tuple[float, float] | None:
    """The top left corner of a caption's plate around the pixel of a segment that has most of it around it.

    Args:
        own: `(height, width)` bool, the segment.
        plate: width and height, pixels.
        taken: plates that are there already, xyxy; they are kept clear of.

    Returns:
        (x, y); None where the segment is too small.
    """
    across = 2 * np.minimum(_run(own), _run(own[:, ::-1])[:, ::-1]) / plate[0]
    down = 2 * np.minimum(_run(own.T).T, _run(own[::-1].T).T[::-1]) / plate[1]
    room = np.minimum(across, down)
    for x1, y1, x2, y2 in taken:
        left, top = max(0, int(x1 - plate[0] / 2)), max(0, int(y1 - plate[1] / 2))
        room[top : int(y2 + plate[1] / 2) + 1, left : int(x2 + plate[0] / 2) + 1] = 0
    if room.max() < 1:
        return None
    y, x = np.unravel_index(np.argmax(room + CENTRED * np.maximum(across, down)), room.shape)
    return float(x - plate[0] / 2), float(y - plate[1] / 2)


def _run(own: np.ndarray) -> np.ndarray:
    """How many pixels of the segment there are in one go up to each pixel, from the left; 0 outside of it."""
    places = np.arange(1, own.shape[1] + 1)
    return places - np.maximum.accumulate(np.where(own, 0, places), axis=1)
