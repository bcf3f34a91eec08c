"""Detection in tiles of large images, and the merging of what several tiles see of one object.

Source:
    Akyon, Altinuc and Temizel 2022, "Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection",
    arXiv:2202.06934, whose merging compares whole boxes; here only what both tiles see is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdetr_keras.data.image_files import record_of
from tfdetr_keras.data.record import RECORD_SPEC
from tfdetr_keras.data.tiles import Tiles
from tfdetr_keras.inference.detection import detect
from tfdetr_keras.inference.postprocess import THRESHOLD
from tfdetr_keras.preprocessing import Preprocessing, SizeRule

SAME = 0.5  # IoU, within what two tiles both see, from which two boxes are one object's
AT_EDGE = 2.0  # pixels from a tile's edge, within which a box may be cut there

Window = tuple[int, int, int, int]  # top, left, height, width, pixels


def detect_tiled(
    model: keras.Model,
    records: tf.data.Dataset,
    tiles: Tiles,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    pad_to: tuple[int, int] | None = None,
    threshold: float | Mapping[str, float] = THRESHOLD,
    size_rule: SizeRule | None = None,
    masks: bool = True,
    preprocessing: Preprocessing | None = None,
) -> Iterator[dict[str, Any]]:
    """Detect objects in tiles of images, and merge what several tiles see of one object.

    Args:
        model: as for `detect`, like the other arguments; each tile is prepared as an image of its own.
        records: of images.
        tiles: where to cut.
        size: of tiles as the model sees them.
        batch_size: tiles a batch; those of an image may share it with another's.
        pad_to: (height, width) of a fixed canvas.
        threshold: only detections with a higher score are returned.
        size_rule: by which tiles are resized.
        masks: whether masks are returned, where the model has them.
        preprocessing: how tiles are prepared.

    Yields:
        Per record, as `detect`, with boxes and masks in pixels of the image.

    Raises:
        ValueError: as `detect`.
    """
    sizes: list[tuple[int, int, int]] = []  # image id, height and width, in the order of the records
    images = records.map(lambda record: (record["image_id"], record["image"]))

    def pieces() -> Iterator[np.ndarray]:
        for image_id, image in images.as_numpy_iterator():
            sizes.append((int(image_id), *image.shape[:2]))
            for top, left, height, width in tiles.windows(*image.shape[:2]):
                yield image[top : top + height, left : left + width]

    cut = tf.data.Dataset.from_generator(pieces, output_signature=RECORD_SPEC["image"])
    found = detect(
        model,
        cut.enumerate().map(lambda place, image: record_of(image, place)),
        size,
        batch_size,
        pad_to,
        threshold,
        size_rule,
        masks,
        preprocessing,
    )
    place = 0
    parts: list[dict[str, Any]] = []
    for part in found:
        parts.append(part)
        image_id, height, width = sizes[place]
        windows = tiles.windows(height, width)
        if len(parts) == len(windows):
            yield {"image_id": image_id, **merged(parts, windows, (height, width))}
            place, parts = place + 1, []


def merged(parts: Sequence[Mapping[str, Any]], windows: Sequence[Window], size: tuple[int, int]) -> dict[str, Any]:
    """Merge the detections of an image's tiles.

    Two detections of one class in two tiles are one object if what both tiles see of them overlaps. Detections of one
    tile are never merged: they are what the model tells apart. Of several, the highest score stays, and the box of the
    surest detection that no tile cuts; where all are cut, the box around them.

    Args:
        parts: of each tile, `{"boxes": (n, 4) xyxy pixels of the tile, "labels": (n,), "scores": (n,)}`, with `"masks":
            (n, height, width)` of the tile where there are masks.
        windows: top, left, height and width of each tile, pixels.
        size: height and width of the image.

    Returns:
        The same of the image, the highest-scoring first.
    """
    tile_of = np.repeat(np.arange(len(parts)), [len(part["labels"]) for part in parts])
    rows = np.concatenate([np.arange(len(part["labels"])) for part in parts])
    scores = np.concatenate([part["scores"] for part in parts])
    labels = np.concatenate([part["labels"] for part in parts])
    frames = np.array([(left, top, left + width, top + height) for top, left, height, width in windows], np.float32)
    boxes = np.concatenate([np.asarray(part["boxes"]).reshape(-1, 4) for part in parts])
    boxes = boxes + np.tile(frames[tile_of, :2], 2)
    is_cut = _cut(boxes, frames[tile_of], size)
    groups = _groups(scores, labels, boxes, tile_of, frames)
    result: dict[str, Any] = {
        "scores": np.array([scores[group[0]] for group in groups], np.float32),
        "labels": np.array([labels[group[0]] for group in groups], np.int64),
        "boxes": np.array([_box(group, boxes, is_cut) for group in groups], np.float32).reshape(-1, 4),
    }
    if all("masks" in part for part in parts):
        whole = np.zeros((len(groups), *size), bool)
        for place, group in enumerate(groups):
            for row in group:
                top, left, height, width = windows[tile_of[row]]
                whole[place, top : top + height, left : left + width] |= parts[tile_of[row]]["masks"][rows[row]]
        result["masks"] = whole
    return result


def _groups(
    scores: np.ndarray, labels: np.ndarray, boxes: np.ndarray, tile_of: np.ndarray, frames: np.ndarray
) -> list[list[int]]:
    """Return the rows of each object's detections, the surest first: of objects, and of each one's detections.

    A detection joins the object with whose detections it overlaps most in what both tiles see, unless that one has a
    detection of its tile already.
    """
    order = np.argsort(-scores, kind="stable")
    group_of = np.full(len(order), -1)
    groups: list[list[int]] = []
    for place, row in enumerate(order):
        others = order[:place]
        others = others[(labels[others] == labels[row]) & (tile_of[others] != tile_of[row])]
        if len(others):
            shared = _intersection(frames[tile_of[row]], frames[tile_of[others]])
            overlaps = _iou(_intersection(boxes[row], shared), _intersection(boxes[others], shared))
            for best in np.argsort(-overlaps, kind="stable"):
                if overlaps[best] < SAME:
                    break
                number = group_of[others[best]]
                if tile_of[row] not in tile_of[groups[number]]:
                    group_of[row] = number
                    groups[number].append(int(row))
                    break
        if group_of[row] < 0:
            group_of[row] = len(groups)
            groups.append([int(row)])
    return groups


def _cut(boxes: np.ndarray, frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return which boxes reach an edge of their tile that is not one of the image."""
    height, width = size
    inner = np.stack([frames[:, 0] > 0, frames[:, 1] > 0, frames[:, 2] < width, frames[:, 3] < height], axis=1)
    return (inner & (np.abs(boxes - frames) <= AT_EDGE)).any(axis=1)


def _box(group: Sequence[int], boxes: np.ndarray, is_cut: np.ndarray) -> np.ndarray:
    whole = [row for row in group if not is_cut[row]]
    if whole:
        return boxes[whole[0]]
    return np.concatenate([boxes[group, :2].min(axis=0), boxes[group, 2:].max(axis=0)])


def _intersection(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return what boxes `(…, 4)` xyxy share; it may have no area, and negative sides."""
    corners = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    return np.concatenate(corners, axis=-1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersections over unions, 0 of boxes without an area."""
    shared = _areas(_intersection(first, second))
    union = _areas(first) + _areas(second) - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0.0)
