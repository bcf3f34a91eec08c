"""Layout of a picture's tags: which are written, where, and how short; none overlap, and the image stays in view."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tfdetr_keras.visualize.lettering import FONT_SIZE, SMALL_FONT_SIZE, plate_of, shortened

SHARE = 0.15  # of the image, that tags may cover
HIDDEN = 0.5  # of a box, that one tag may cover
SMALL = 4  # plates; tags keep clear of boxes smaller than that, which they could hide
LONGEST_NAME, SHORTEST_NAME = 24, 8  # letters, roughly, that a long class name is shortened to in a tag


class Wording(NamedTuple):
    """The text of a tag.

    Attributes:
        name: of the class.
        score: "" if there is none.
    """

    name: str
    score: str = ""


class Tag(NamedTuple):
    """A tag that has a place.

    Attributes:
        row: of the box that it belongs to.
        corner: (x, y) of its plate at the top left, pixels.
        text: to be written.
        size: of the font.
        is_named: whether the text has the name of the class.
    """

    row: int
    corner: tuple[float, float]
    text: str
    size: int
    is_named: bool


class Variant(NamedTuple):
    """One way to write a tag; see `Tag`."""

    text: str
    size: int
    is_named: bool

    @property
    def plate(self) -> tuple[int, int]:
        """Width and height of the plate, pixels."""
        return plate_of(self.text, self.size)


def variants(wording: Wording, width: int, colours_are_classes: bool = True) -> list[Variant]:
    """Return the ways to write a tag, from the fullest to the shortest.

    Args:
        wording: its text.
        width: of the image, pixels, that the tag has to fit into.
        colours_are_classes: whether a colour shows the class, so that the name may be left out.
    """
    found = []
    for size in (FONT_SIZE, SMALL_FONT_SIZE):
        score = f" {wording.score}" if wording.score else ""
        room = width - plate_of(score, size)[0]
        name = shortened(wording.name, min(room, LONGEST_NAME * size / 2), size)
        if name == " ".join(wording.name.split()) or len(name) >= SHORTEST_NAME:
            found.append(Variant(name + score, size, is_named=True))
    if wording.score and colours_are_classes:
        found.append(Variant(wording.score, SMALL_FONT_SIZE, is_named=False))
    elif wording.score:
        found += variants(Wording(wording.name), width)[-1:]
    return found


def starting_variant(choices: Sequence[Sequence[Variant]], area: float) -> int:
    """Return the first variant in which all tags of a picture are small enough together; the last one if none is."""
    most = max(map(len, choices), default=1)
    for start in range(most - 1):
        plates = [of_tag[min(start, len(of_tag) - 1)].plate for of_tag in choices if of_tag]
        if sum(width * height for width, height in plates) <= SHARE * area:
            return start
    return most - 1


def placed_tags(
    boxes: np.ndarray, wordings: Sequence[Wording], size: tuple[int, int], colours_are_classes: bool = True
) -> list[Tag]:
    """Find places for tags at their boxes, inside the image and without overlaps.

    Tags get smaller and shorter where the image is crowded, and are left out where there is no room at all. The last
    box, which is drawn above the others, is the first to get its tag.

    Args:
        boxes: `(n, 4)` xyxy, pixels, inside the image.
        wordings: of each box.
        size: (width, height) of the image, pixels.
        colours_are_classes: whether a colour shows the class, so that the name may be left out.

    Returns:
        The tags that have a place.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    choices = [variants(wording, size[0], colours_are_classes) for wording in wordings]
    start = starting_variant(choices, size[0] * size[1])
    budget, taken = SHARE * size[0] * size[1], np.zeros((0, 4))
    tags: list[Tag] = []
    for row in range(len(boxes) - 1, -1, -1):
        for variant in choices[row][min(start, len(choices[row]) - 1) :] if choices[row] else ():
            width, height = variant.plate
            # The first tag is written whatever it covers: in a narrow strip one alone is a large share of it.
            if tags and width * height > budget:
                continue
            corner = free_place(boxes[row], variant.plate, size, taken, boxes)
            if corner is not None:
                tags.append(Tag(row, corner, *variant))
                taken = np.vstack([taken, plate_at(corner, variant.plate)])
                budget -= width * height
                break
    return tags


def plate_at(corner: tuple[float, float], plate: tuple[float, float]) -> list[float]:
    """Return the area of a plate, xyxy."""
    return [*corner, corner[0] + plate[0], corner[1] + plate[1]]


def free_place(
    box: Iterable[float],
    plate: tuple[float, float],
    size: tuple[int, int],
    taken: np.ndarray,
    boxes: np.ndarray,
) -> tuple[float, float] | None:
    """Find the top left corner of a plate at its box: inside the image, on no other plate, and hiding no box.

    Args:
        box: xyxy, pixels.
        plate: width and height, pixels.
        size: (width, height) of the image, pixels.
        taken: `(m, 4)` xyxy, plates that are there already.
        boxes: `(n, 4)` xyxy, of which it covers small ones as little as possible, and none by more than half.

    Returns:
        (x, y), or None if there is no such place.
    """
    (x1, y1, x2, y2), (width, height) = box, plate
    if width > size[0] or height > size[1]:
        return None
    at = [(x1, y1 - height), (x1, y1), (x1, y2 + 1), (x1, y2 - height), (x2 + 1, y1), (x1 - width, y1)]
    at += [(x2 - width, y1 - height), (x2 - width, y1), (x2 - width, y2 + 1), (x2 - width, y2 - height)]
    if y1 < height:
        at = [place for place in at if place[1] >= 0]  # there is no room above
    corners = np.clip(np.round(at), 0, [size[0] - width, size[1] - height])
    plates = np.concatenate([corners, corners + np.array(plate)], axis=1)
    allowed = ~(_shared(plates, taken) > 0).any(axis=1)
    covered, areas = _shared(plates, boxes), np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 1)
    allowed &= (covered <= HIDDEN * areas).all(axis=1)
    if not allowed.any():
        return None
    cost = covered[:, areas < SMALL * width * height].sum(axis=1)
    best = int(np.argmin(np.where(allowed, cost, np.inf)))  # the first of the best
    return float(corners[best, 0]), float(corners[best, 1])


def _shared(plates: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the areas that `(m, 4)` and `(n, 4)` xyxy have in common, `(m, n)`."""
    left_top = np.maximum(plates[:, None, :2], others[None, :, :2])
    right_bottom = np.minimum(plates[:, None, 2:], others[None, :, 2:])
    return np.prod(np.maximum(right_bottom - left_top, 0), axis=-1)
