"""The meaning of the numbers of a YOLO label line: a box, a polygon, or a box with something after it.

After the class stand four numbers of a box, or the corners of a polygon. But trackers and predictors write a confidence
and a track's number after the box, and pose sets their keypoints, and many of these lines have as many numbers as a
polygon. All readings that begin with a box agree on the box; so only one thing is decided, box or polygon, and where
the numbers leave it open the line is refused rather than guessed.

Of one line, these decide: the numbers of a polygon lie in 0 .. 1; those after a box are a confidence and a whole
number, or keypoints, most of which lie in the box; a long outline goes round without crossing itself, keypoints do not.
And of all lines together: a skeleton has the same number of values on each line, so that many lines that can only be
polygons speak for the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum
from typing import Literal, NamedTuple

import numpy as np

from tfdetr_keras.data.box_format import to_xyxy

Lines = Literal["auto", "boxes", "polygons"]

ROUNDING = 0.02  # of the image, by which a polygon may leave it
OVERSHOOT = 0.25  # of the image, by which a box with keypoints in it may leave it
SMALL_OVERSHOOT = 0.1  # the same of a box with a confidence and a track, whose number is written with a point
MARGIN = 0.25  # of a box's side, by which keypoints may lie outside
SPREAD, SMALL_SPREAD = 0.25, 0.15  # of a box's sides, that keypoints span, five or more and fewer
OUTLINE = 12  # points from which on an outline can be told from keypoints by its course
LARGEST_SKELETON = 600  # points; whole bodies with face and hands have some 540
FEW_POLYGONS = 3  # lines that must be certain before they speak for others that look alike
MANY_POLYGONS = 30  # lines that speak for all others, if they have different counts
_SHOWN = 60  # characters of a line in a message


class Line(NamedTuple):
    """One line of a label file: the place of its file, its number from 1 on, its class and the numbers after it."""

    file: int
    row: int
    label: int
    values: list[float]


class _Form(NamedTuple):
    """The numbers after a box: keypoints of so many values each, 0 if there are none, and so many numbers more."""

    keypoint_size: int
    tail: int


class _Reading(Enum):
    BOX, POLYGON, OPEN, NEITHER = range(4)


def parse_line(text: str) -> tuple[int, list[float]]:
    """Split a line into its class and the numbers after it.

    Raises:
        ValueError: not numbers, or a class that is not a whole number; the complaint continues from the line.
    """
    try:
        number, *values = map(_number, text.split())
    except ValueError:
        raise ValueError(f"{shortened(text)} is not numbers") from None
    if not abs(number) < 2**31 or number % 1:
        raise ValueError(f"the class {number:g} is not a whole number")
    return int(number), values


def _number(word: str) -> float:
    """Return a number, as `int` if it is whole and written without a point, as track numbers are."""
    value = float(word)
    return int(value) if word.isdigit() and value < 2**53 else value


def shortened(text: str) -> str:
    """Return the text of a line as messages show it."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …")


def boxes_of(lines: Sequence[Line], lines_are: Lines = "auto", keypoint_values: int = 0) -> list[list[float] | str]:
    """Read the box of each line of a set, all lines together.

    Args:
        lines: of all label files.
        lines_are: "auto" decides by the numbers; "boxes": each line begins with a box, what follows is ignored;
            "polygons": each line of six numbers or more is a polygon.
        keypoint_values: how many numbers follow each box, as a pose set's `kpt_shape` says; 0 if there is none.

    Returns:
        For each line its corners xyxy, relative to the image, or a complaint that continues from the line.
    """
    if keypoint_values and lines_are == "auto":
        complaint = f"is not class cx cy w h and the {keypoint_values} numbers of kpt_shape"
        return [_corners(line.values) if len(line.values) == 4 + keypoint_values else complaint for line in lines]
    if lines_are == "boxes":
        complaint = 'is not class cx cy w h, with or without more after it, as lines="boxes" says'
        return [_corners(line.values) if len(line.values) >= 4 else complaint for line in lines]
    long = [line for line in lines if _may_be_polygon(line.values)]
    readings = [_Reading.POLYGON] * len(long) if lines_are == "polygons" else _decided(long)
    decided = iter(readings)
    return [_box(line.values, next(decided) if _may_be_polygon(line.values) else None, lines_are) for line in lines]


def is_more_than_a_box(values: Sequence[float], box: Sequence[float]) -> bool:
    """Return whether numbers of a line were ignored in favour of its box."""
    return len(values) > 4 and list(box) == _corners(list(values))


def _may_be_polygon(values: Sequence[float]) -> bool:
    return len(values) >= 6 and len(values) % 2 == 0


def _box(values: list[float], reading: _Reading | None, lines_are: Lines) -> list[float] | str:
    """Return the corners of one line, or what is wrong with it; `reading` is that of a line that may be a polygon."""
    if len(values) == 4 or reading is _Reading.BOX:
        return _corners(values)
    if reading is _Reading.POLYGON:
        return [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
    if reading is _Reading.OPEN:
        return (
            "may be a polygon, or a box with a confidence, a track or keypoints after it: choose with "
            'lines="polygons" or lines="boxes" (--lines), or give the kpt_shape of keypoints in data.yaml'
        )
    complaint = "is neither class cx cy w h nor class x y x y x y … with coordinates relative to the image, 0 to 1"
    if lines_are == "auto" and len(values) > 4:
        complaint += '; where a confidence, a track or keypoints follow a box, set lines="boxes" (--lines boxes)'
    return complaint


def _corners(values: list[float]) -> list[float]:
    return to_xyxy([values[:4]], "cxcywh")[0].tolist()


def _decided(lines: Sequence[Line]) -> list[_Reading]:
    """Return what each line is, for lines with an even count of six numbers or more."""
    forms = [_forms(line.values) for line in lines]
    readings = [_reading(line.values, bool(own)) for line, own in zip(lines, forms, strict=True)]
    boxes = _counts(lines, readings, _Reading.BOX)
    known = {
        (len(line.values), form)
        for line, reading, own in zip(lines, readings, forms, strict=True)
        for form in own
        if reading is _Reading.BOX
    }
    for place, (line, reading) in enumerate(zip(lines, readings, strict=True)):
        if reading is _Reading.OPEN and not boxes[len(line.values)] and _goes_round(line.values):
            readings[place] = _Reading.POLYGON
    polygons, unsure = (_counts(lines, readings, kind) for kind in (_Reading.POLYGON, _Reading.OPEN))
    # Certain polygons speak for the others, unless they are exceptions, as among keypoints that were drawn badly.
    speak = not boxes and polygons.total() >= max(FEW_POLYGONS, unsure.total() / 3)
    speak_loudly = speak and polygons.total() >= MANY_POLYGONS and len(polygons) >= FEW_POLYGONS
    for place, (line, reading, own) in enumerate(zip(lines, readings, forms, strict=True)):
        count = len(line.values)
        if reading is _Reading.POLYGON and not speak and 4 * polygons[count] < unsure[count] + boxes[count]:
            readings[place] = _Reading.OPEN
        elif reading is _Reading.OPEN and not polygons[count] and any((count, form) in known for form in own):
            readings[place] = _Reading.BOX
        elif reading is _Reading.OPEN and (speak_loudly or (speak and _is_in_one_place(line.values))):
            readings[place] = _Reading.POLYGON
    return readings


def _counts(lines: Sequence[Line], readings: Sequence[_Reading], kind: _Reading) -> Counter[int]:
    """Return how many lines have one reading, by their number of values."""
    return Counter(len(line.values) for line, reading in zip(lines, readings, strict=True) if reading is kind)


def _reading(values: Sequence[float], begins_with_a_box: bool) -> _Reading:
    """Return what the numbers of one line can be, by themselves."""
    polygon = all(-ROUNDING <= value <= 1 + ROUNDING for value in values)
    if polygon and (len(values) // 2 > LARGEST_SKELETON or _is_parallelogram(values)):
        return _Reading.POLYGON
    if begins_with_a_box:
        return _Reading.OPEN if polygon else _Reading.BOX
    return _Reading.POLYGON if polygon else _Reading.NEITHER


def _forms(values: Sequence[float]) -> set[_Form]:
    """Return what may stand after a box, if the first four numbers are a box in the image and the others fit it."""
    x, y, width, height = values[:4]
    if not (0 <= width <= 1 + ROUNDING and 0 <= height <= 1 + ROUNDING):  # also where they are not finite
        return set()
    overshoot = max(width / 2 - x, height / 2 - y, x + width / 2 - 1, y + height / 2 - 1)
    found = set()
    for size in (0, 1, 2):
        keypoints, tail = values[4 : len(values) - size], values[len(values) - size :]
        if not _is_confidence_or_track(tail):
            continue
        if not keypoints and (any(isinstance(value, int) for value in tail) or overshoot <= SMALL_OVERSHOOT):
            found.add(_Form(0, size))
        if overshoot <= OVERSHOOT:
            found |= {_Form(each, size) for each in (2, 3) if _are_keypoints(keypoints, each, x, y, width, height)}
    return found


def _are_keypoints(values: Sequence[float], size: int, x: float, y: float, width: float, height: float) -> bool:
    """Return whether numbers are keypoints of `size` values each that fit a box: most lie in it, spread out."""
    if not values or len(values) % size:
        return False
    if size == 3 and not all(0 <= value <= 2 for value in values[2::3]):  # how visible it is, or how certain
        return False
    points = zip(values[::size], values[1::size], strict=True)
    seen = [point for point in points if point != (0, 0)]
    inside = sum(abs(px - x) <= width * (0.5 + MARGIN) and abs(py - y) <= height * (0.5 + MARGIN) for px, py in seen)
    spread = SMALL_SPREAD if len(seen) < 5 else SPREAD
    gathered = len(seen) >= 3 and all(
        max(side) - min(side) < spread * whole
        for side, whole in zip(zip(*seen, strict=True), (width, height), strict=True)
    )
    return 2 * inside >= len(seen) and not gathered


def _is_confidence_or_track(tail: Sequence[float]) -> bool:
    """Return whether numbers at the end of a line can be a confidence, a track's number, or both in either order."""
    confidences = [0 <= value <= 1 for value in tail]
    tracks = [value >= -1 and value % 1 == 0 for value in tail]
    if len(tail) < 2:
        return all(confidence or track for confidence, track in zip(confidences, tracks, strict=True))
    return (confidences[0] and tracks[1]) or (tracks[0] and confidences[1])


def _is_parallelogram(values: Sequence[float]) -> bool:
    """Return whether four points are those of a turned box, which keypoints are only by accident."""
    if len(values) != 8:
        return False
    x, y = values[::2], values[1::2]
    extent = max(max(x) - min(x), max(y) - min(y))
    return max(abs(side[0] - side[1] + side[2] - side[3]) for side in (x, y)) <= 1e-3 * extent


def _is_in_one_place(values: Sequence[float]) -> bool:
    """Return whether the first two points lie where the others are.

    Those of a polygon do, a box's numbers seldom.
    """
    if len(values) == 6 and values[5] % 1 == 0:
        return False  # rather a confidence and a track
    if len(values) < 10:
        return True
    for axis in (0, 1):
        others = values[4 + axis :: 2]
        low, high = min(others), max(others)
        reach = high - low
        if not (
            low - reach <= min(values[axis], values[2 + axis]) <= max(values[axis], values[2 + axis]) <= high + reach
        ):
            return False
    return True


def _goes_round(values: Sequence[float]) -> bool:
    """Return whether many points make an outline.

    No two sides cross, and the first steps are no longer than the others.
    """
    points = np.reshape(values, (-1, 2))
    # Drawn by hand, an outline may end where it began, or stay in a place.
    points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
    if len(points) < OUTLINE:
        return False
    ends = np.roll(points, -1, axis=0)
    steps = np.hypot(*(ends - points).T)
    # Those from and to what would be the box's centre and size.
    return bool(max(steps[-1], steps[0], steps[1]) <= steps[2:-1].max() and not _crosses(points, ends))


def _crosses(starts: np.ndarray, ends: np.ndarray) -> bool:
    """Return whether two sides of a closed outline that are not neighbours cross."""

    def turns(point: np.ndarray) -> np.ndarray:
        """Return on which side of each side a point lies, `(sides, points)`."""
        along, to = ends - starts, point[None] - starts[:, None]
        return along[:, None, 0] * to[..., 1] - along[:, None, 1] * to[..., 0]

    apart = turns(starts) * turns(ends) < 0  # side j's ends lie on both sides of side i
    return bool((apart & apart.T).any())
