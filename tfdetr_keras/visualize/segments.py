"""Pictures of segments over their images: instances or a panoptic map, each in a translucent colour with its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from tfdetr_keras.visualize.detections import titles_of
from tfdetr_keras.visualize.drawing import CELL, Crowding, class_colour, fitted, longest_side, tint
from tfdetr_keras.visualize.lettering import tag_on_plate
from tfdetr_keras.visualize.segment_rows import segment_rows
from tfdetr_keras.visualize.tags import Variant, Wording, free_place, plate_at, starting_variant, variants
from tfdetr_keras.visualize.tiles import key_of_classes, tile, told_crowding, write_grid

if TYPE_CHECKING:
    from tfdetr_keras.inference.segments import Segments

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
    titles: Sequence[str] | None = None,
) -> None:
    """Write a grid of images with their segments as a PNG.

    A segment is a translucent area in its class's colour, in a different shade for each segment of the class, with a
    thin white outline, name and score. Pixels without a segment are left unchanged. Above each image are its title and
    how many segments there are, and in a crowd, where tags are shortened or left out, what the colours mean. One image
    alone is drawn larger than those of a grid.

    Args:
        images: each `(height, width, 3)` uint8, RGB.
        segments: per image `{"segmentation": (height, width) int32 of ids, "segments_info": […]}`, as
            `post_process_panoptic` and `post_process_instance` return them for the image's size.
        class_names: name of each label, in a list or by label.
        path: the PNG to write.
        columns: images in a row of the grid.
        titles: of each image, e.g. its file name.

    Raises:
        ValueError: no images, or not one entry of `segments` and `titles` for each; a map of another size than its
            image; fewer than one column.
    """
    lengths = [len(images), len(segments)]
    if not lengths[0] or len(set(lengths)) > 1:
        raise ValueError(f"images and segments must be as many, at least one, not {lengths}")
    longest, cells = longest_side(images), []
    for image, found, title in zip(images, segments, titles_of(images, titles), strict=True):
        rows = list(segment_rows(found["segmentation"], found["segments_info"], class_names))
        lines = [f"{len(rows)} segment{'s' * (len(rows) > 1)}"] if rows else []
        cells.append(_draw_image(image, found["segmentation"], rows, longest, lines, title))
    write_grid(cells, path, columns)


def image_of_segments(found: Segments, longest: int = CELL) -> Image.Image:
    """Draw the segments of an image, as `draw_segments` does.

    Args:
        found: of the image.
        longest: the image's longer side in the picture, pixels.

    Returns:
        The picture, RGB: the image, and above it a line where there is no segment, or where tags had no room.

    Raises:
        ValueError: the map has another size than the image.
    """
    return _draw_image(found.image, found.segmentation, list(found), longest, [], None)


def _draw_image(
    pixels: np.ndarray,
    segmentation: np.ndarray,
    rows: Sequence[Mapping[str, Any]],
    longest: int,
    lines: Sequence[str],
    title: str | None,
) -> Image.Image:
    """Return one cell of the grid."""
    if segmentation.shape != pixels.shape[:2]:
        raise ValueError(
            f"the map of segments is (height, width) = {segmentation.shape}, the image {pixels.shape[:2]}: "
            "give the post-processing the image's size"
        )
    image, _ = fitted(pixels, longest)
    ids = np.asarray(Image.fromarray(segmentation).resize(image.size, Image.Resampling.NEAREST))
    of_classes = _class_colours([row["label"] for row in rows])
    colours = _shades([row["label"] for row in rows], of_classes)
    image = Image.fromarray(_tinted(np.asarray(image), ids, [row["id"] for row in rows], colours))
    crowding = _write_names(image, ids, rows, colours)
    names = [row["name"] for row in rows]
    key = key_of_classes(names, [of_classes[row["label"]] for row in rows]) if crowding.nameless else []
    nothing = [] if rows else ["no segments"]
    return tile(image, [*lines, *nothing, *told_crowding(crowding, len(rows))], title, key)


def _write_names(
    image: Image.Image, ids: np.ndarray, rows: Sequence[Mapping[str, Any]], colours: Sequence[tuple[int, ...]]
) -> Crowding:
    """Draw tags in the middle of segments that have room for them, and beside the others, as far as there is room."""
    draw = ImageDraw.Draw(image)
    choices = [variants(Wording(row["name"], f"{row['score']:.2f}"), image.width) for row in rows]
    start = starting_variant(choices, image.width * image.height)
    choices = [of_tag[min(start, len(of_tag) - 1) :] for of_tag in choices]
    taken, left_out, nameless = np.zeros((0, 4)), 0, 0

    def write(place: int, corner: tuple[float, float], variant: Variant) -> None:
        nonlocal taken, nameless
        taken = np.vstack([taken, plate_at(corner, variant.plate)])
        nameless += not variant.is_named
        tag_on_plate(draw, corner, variant.text, colours[place], variant.size)

    small = {}
    for place, row in enumerate(rows):
        own = ids == row["id"]
        for variant in (variant for variant in choices[place] if variant.is_named):
            if (corner := _roomiest(own, variant.plate, taken)) is not None:
                write(place, corner, variant)
                break
        else:
            if own.any():
                (y1, x1), (y2, x2) = (end(np.nonzero(own), axis=1).tolist() for end in (np.min, np.max))
                small[place] = [x1 - 1, y1 - 1, x2 + 1, y2 + 1]  # plates are drawn on their border too
    boxes = np.array(list(small.values()), float).reshape(-1, 4)
    for place, box in sorted(small.items(), key=lambda item: rows[item[0]]["area"]):
        for variant in choices[place]:
            # A score alone is no wider than most segments; a name is rather read beside its segment than left out.
            corner = None if variant.is_named else _roomiest(ids == rows[place]["id"], variant.plate, taken)
            corner = corner or free_place(box, variant.plate, image.size, taken, boxes)
            if corner is not None:
                write(place, corner, variant)
                break
        else:
            left_out += 1
    return Crowding(left_out, left_out + nameless)


def _class_colours(labels: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Return a colour for each class; if two are alike, the later one gets that of another class."""
    of_classes: dict[int, tuple[int, ...]] = {}
    for label in dict.fromkeys(labels):
        candidates = [class_colour(label + shift) for shift in range(CANDIDATES)]
        apart = [
            min((math.dist(colour, other) for other in of_classes.values()), default=ALIKE) for colour in candidates
        ]
        of_classes[label] = candidates[next((i for i, far in enumerate(apart) if far >= ALIKE), np.argmax(apart))]
    return of_classes


def _shades(labels: Sequence[int], of_classes: Mapping[int, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return a colour for each segment: its class's colour, in the next shade for each further segment of the class."""
    colours = []
    for place, label in enumerate(labels):
        share = SHADES[labels[:place].count(label) % len(SHADES)]
        towards = 255 if share > 0 else 0
        colours.append(tuple(round(level + abs(share) * (towards - level)) for level in of_classes[label]))
    return colours


def _tinted(
    pixels: np.ndarray, ids: np.ndarray, numbers: Sequence[int], colours: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Return the image `(height, width, 3)` uint8 under the segments of the map `ids`, with numbers and colours."""
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


def _roomiest(own: np.ndarray, plate: tuple[float, float], taken: np.ndarray) -> tuple[float, float] | None:
    """Return the top left corner of a caption's plate, around the pixel with the most of its segment around it.

    Args:
        own: `(height, width)` bool, the segment.
        plate: width and height, pixels.
        taken: `(m, 4)` xyxy, plates that are there already, which the new one does not touch.

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
    """Return how many pixels of the segment lie without a gap up to each pixel, from the left; 0 outside of it."""
    places = np.arange(1, own.shape[1] + 1)
    return places - np.maximum.accumulate(np.where(own, 0, places), axis=1)
