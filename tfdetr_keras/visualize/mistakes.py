"""Pictures of a model's hits, of what it misses, and of what it sees where nothing is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask

from tfdetr_keras.visualize.detections import titles_of, told_annotated
from tfdetr_keras.visualize.drawing import fitted, frames_with_tags, longest_side
from tfdetr_keras.visualize.tags import Wording
from tfdetr_keras.visualize.tiles import dashed, solid, tile, told_crowding, write_grid

HIT, MISS, FALSE_ALARM = (40, 200, 80), (230, 40, 40), (255, 170, 0)


class Verdict(NamedTuple):
    """The hits, false alarms and misses in one image.

    Attributes:
        hits: detections, by row, that found a true box of their class.
        false_alarms: the other detections.
        misses: true boxes, by row, that no detection found.
    """

    hits: np.ndarray
    false_alarms: np.ndarray
    misses: np.ndarray


def verdict(
    found: Mapping[str, Any], truth: Mapping[str, Any], threshold: float = 0.5, min_iou: float = 0.5
) -> Verdict:
    """Divide an image's detections and boxes into hits, false alarms and misses.

    COCO's evaluation does the same at one score and one IoU. The highest-scoring detection comes first and takes the
    true box of its class that it overlaps most, if that is at least `min_iou` and not taken yet. Crowds are not misses,
    and a detection within one is not a false alarm.

    Args:
        found: `{"boxes": (n, 4) xyxy pixels, "labels": (n,), "scores": (n,)}`.
        truth: `{"boxes": (m, 4) xyxy pixels, "labels": (m,)}`, with `"iscrowd": (m,) bool` where there are crowds.
        threshold: detections with a lower score do not count.
        min_iou: intersection over union from which on a true box counts as found.
    """
    scores, labels, boxes = (np.asarray(found[key]) for key in ("scores", "labels", "boxes"))
    true_labels, true_boxes = np.asarray(truth["labels"]), np.asarray(truth["boxes"]).reshape(-1, 4)
    is_crowd = np.asarray(truth.get("iscrowd", np.zeros(len(true_labels), bool)), bool)
    overlaps = _overlaps(boxes.reshape(-1, 4), true_boxes, is_crowd)
    free, hits, alarms = ~is_crowd, [], []
    for row in np.argsort(-scores, kind="stable"):
        if scores[row] < threshold:
            break
        same = true_labels == labels[row]
        candidates = np.where(same & free, overlaps[row], -1.0)
        if len(candidates) and candidates.max() >= min_iou:
            free[candidates.argmax()] = False
            hits.append(row)
        elif not (same & is_crowd & (overlaps[row] >= min_iou)).any():
            alarms.append(row)
    return Verdict(np.array(hits, int), np.array(alarms, int), np.flatnonzero(free))


def draw_mistakes(
    images: Sequence[np.ndarray],
    detections: Sequence[Mapping[str, Any]],
    ground_truth: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    path: str | Path,
    threshold: float | None = 0.5,
    min_iou: float = 0.5,
    columns: int = 4,
    most: int = 16,
    titles: Sequence[str] | None = None,
) -> None:
    """Write a gallery as a PNG: hits are green, misses red and dashed, false alarms orange; the worst come first.

    Above each image are its title and how many there are of each.

    Args:
        images: each `(height, width, 3)` uint8, RGB.
        detections: per image, as `post_process` returns them.
        ground_truth: per image, see `verdict`.
        class_names: name of each label.
        path: the PNG to write.
        threshold: detections with a lower score do not count; None if all do.
        min_iou: intersection over union from which on a true box counts as found.
        columns: images in a row.
        most: images at most.
        titles: of each image, e.g. its file name.

    Raises:
        ValueError: no images, or not one entry of each for every image; fewer than one column.
    """
    lengths = [len(images), len(detections), len(ground_truth)]
    if not lengths[0] or len(set(lengths)) > 1:
        raise ValueError(f"images, detections and ground_truth must be as many, at least one, not {lengths}")
    verdicts = [
        verdict(found, truth, threshold or 0.0, min_iou) for found, truth in zip(detections, ground_truth, strict=True)
    ]
    mistakes = [len(seen.misses) + len(seen.false_alarms) for seen in verdicts]
    worst = sorted(range(len(images)), key=lambda place: -mistakes[place])[:most]
    names, longest = titles_of(images, titles), longest_side(images[:most])
    cells = [
        _cell(
            images[place],
            detections[place],
            ground_truth[place],
            verdicts[place],
            class_names,
            longest,
            "nothing found" if threshold is None else f"nothing above {threshold:.2f}",
            names[place],
        )
        for place in worst
    ]
    legend = [
        solid("hit: found as annotated", HIT),
        dashed("missed: annotated, not found", MISS),
        solid("false alarm: found, not annotated", FALSE_ALARM),
    ]
    write_grid(cells, path, columns, legend)


def _overlaps(boxes: np.ndarray, others: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """Return pycocotools' intersections over unions, `(boxes, others)`; of a crowd, over the box's own area."""
    first, second = (
        np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(np.float64)
        for corners in (boxes, others)
    )
    return np.asarray(mask.iou(first, second, is_crowd.astype(np.uint8))).reshape(len(boxes), len(others))


def _cell(
    pixels: np.ndarray,
    found: Mapping[str, Any],
    truth: Mapping[str, Any],
    seen: Verdict,
    class_names: Sequence[str],
    longest: int,
    nothing: str,
    title: str | None,
) -> Image.Image:
    image, scale = fitted(pixels, longest)
    scores, labels, true_labels = (np.asarray(one) for one in (found["scores"], found["labels"], truth["labels"]))
    boxes, true_boxes = np.asarray(found["boxes"]).reshape(-1, 4), np.asarray(truth["boxes"]).reshape(-1, 4)

    def detected(rows: np.ndarray) -> list[Wording]:
        return [Wording(class_names[labels[row]], f"{scores[row]:.2f}") for row in rows]

    # What is wrong lies above what is right, and is the first to get its tags.
    corners = np.concatenate([boxes[seen.hits], true_boxes[seen.misses], boxes[seen.false_alarms]])
    missed = [Wording(class_names[true_labels[row]]) for row in seen.misses]
    wordings = detected(seen.hits) + missed + detected(seen.false_alarms)
    parts = [(HIT, len(seen.hits)), (MISS, len(missed)), (FALSE_ALARM, len(seen.false_alarms))]
    colours = [colour for colour, count in parts for _ in range(count)]
    dashes = [colour == MISS for colour in colours]
    crowding = frames_with_tags(image, corners * scale, colours, wordings, dashes, colours_are_classes=False)
    said = f"{len(seen.hits)} hit, {len(missed)} missed, {len(seen.false_alarms)} false"
    if not len(seen.hits) + len(seen.false_alarms):
        said = f"{nothing}, {told_annotated(len(true_labels))}"
    elif not len(true_labels):
        said += f", {told_annotated(0)}"
    return tile(image, [said, *told_crowding(crowding, len(colours))], title)
