"""Post-processing: from the model's outputs to detections in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from tfdetr_keras.matching.classification import Classification, classification_named

THRESHOLD = 0.5  # of a detection's score, where none is given


def post_process(
    outputs: Mapping[str, Any],
    target_sizes: Any,
    threshold: float | Sequence[float] = THRESHOLD,
    classification: str | Classification = "softmax",
    top_k: int | None = None,
) -> list[dict[str, np.ndarray]]:
    """Turn logits and relative boxes into one detection list per image.

    With `"softmax"` each query is a detection of its most likely real class; queries whose probability does not exceed
    the threshold are left out. The order of the queries is kept. With `"focal"` each pair of a query and a class is a
    detection of its own, so one query may give several classes: the `top_k` most likely pairs that exceed the threshold
    are returned, the highest-scoring first; among equal ones, the earlier query comes first, then the lower label.
    There is no non-maximum suppression: the set loss makes it unnecessary.

    Args:
        outputs: the model's outputs: `logits` `(batch, queries, classes + 1)`, last = no object, or with `"focal"`
            `(batch, queries, classes)`, and `pred_boxes` `(batch, queries, 4)` cxcywh in [0, 1] of the unpadded image.
        target_sizes: `(batch, 2)` height and width in pixels of the image that each result's boxes refer to,
            usually the original one.
        threshold: only detections with score > threshold are returned; one for all, or one for each label.
        classification: `"softmax"` (DETR) or `"focal"` (Conditional DETR), as the model was trained.
        top_k: with `"focal"`, the largest number of detections.

    Returns:
        Per image `{"scores": (n,) float32, "labels": (n,) int64, "boxes": (n, 4) float32 xyxy in pixels}`.

    Raises:
        ValueError: `target_sizes` has not one row (height, width) per image, an unknown `classification`, `top_k`
            below 1, or not one threshold for each label.

    Source:
        DETR, section 4 ("Implementation details"); for `"focal"` Zhu et al. 2021, "Deformable DETR", arXiv:2010.04159,
        and Meng et al. 2021, "Conditional DETR", arXiv:2108.06152, by their published code.
    """
    boxes = np.asarray(ops.convert_to_numpy(outputs["pred_boxes"]), np.float32)
    sizes = np.asarray(ops.convert_to_numpy(target_sizes), np.float32)
    if sizes.shape != (len(boxes), 2):
        raise ValueError(
            f"target_sizes must be (height, width) for each of the {len(boxes)} images, not of shape {sizes.shape}"
        )
    centers, sides = boxes[..., :2], boxes[..., 2:]
    corners = np.concatenate([centers - 0.5 * sides, centers + 0.5 * sides], axis=-1)
    corners *= np.tile(sizes[:, ::-1], 2)[:, None, :]
    return [
        {"scores": scores, "labels": labels, "boxes": box[queries]}
        for box, (scores, labels, queries) in zip(
            corners, confident(outputs["logits"], threshold, classification, top_k), strict=True
        )
    ]


def confident(
    logits: Any,
    threshold: float | Sequence[float],
    classification: str | Classification = "softmax",
    top_k: int | None = None,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Select the (query, class) pairs above the threshold.

    Returns:
        Per image scores `(n,)` float32, labels `(n,)` int64 and queries `(n,)` int64.

    Raises:
        ValueError: an unknown `classification`, `top_k` below 1, or not one threshold for each label.
    """
    named = classification_named(classification)
    logits = np.asarray(ops.convert_to_numpy(logits), np.float32)
    answers = named.confident(logits, top_k)
    limits, classes = np.asarray(threshold), logits.shape[-1] - named.has_no_object
    if limits.ndim and limits.shape != (classes,):
        raise ValueError(f"threshold must be one number, or one for each of {classes} labels, not {len(limits)}")
    above = answers[0] > (limits[answers[1]] if limits.ndim else limits)
    return [(score[keep], label[keep], query[keep]) for score, label, query, keep in zip(*answers, above, strict=True)]


def threshold_of_each(names: Sequence[str], threshold: float | Mapping[str, float]) -> np.ndarray:
    """Return the threshold of each of some objects, `(objects,)`.

    Args:
        names: of their classes.
        threshold: one for all, or one by the name of each class; 0.5 for classes that it does not name.
    """
    by_name = threshold if isinstance(threshold, Mapping) else dict.fromkeys(names, threshold)
    return np.array([by_name.get(name, THRESHOLD) for name in names], np.float64)


def threshold_by_label(threshold: float | Mapping[str, float], names: Mapping[int, str]) -> float | list[float]:
    """Return what `post_process` takes of thresholds that are told by the names of the classes.

    Args:
        threshold: one for all, or one by the name of each class; 0.5 for classes that it does not name.
        names: of the labels, `{label: name}`.

    Raises:
        ValueError: a threshold of another class.
    """
    if not isinstance(threshold, Mapping):
        return threshold
    known = set(names.values())
    if unknown := [name for name in threshold if name not in known]:
        raise ValueError(f"threshold has {unknown[0]!r}, which is no class of the model: {', '.join(names.values())}")
    return [float(threshold.get(names[label], THRESHOLD)) for label in sorted(names)]
