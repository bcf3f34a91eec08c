"""From the model's outputs to detections in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from keras import ops

from tfdetr_keras.matching.matcher import Classification

TOP_K = 100  # detections an image, of which each query may give several


def post_process(
    outputs: Mapping[str, Any],
    target_sizes: Any,
    threshold: float = 0.5,
    classification: Classification = "softmax",
    top_k: int = TOP_K,
) -> list[dict[str, np.ndarray]]:
    """Turns logits and relative boxes into one detection list per image.

    With `"softmax"` each query speaks for its most likely real class; queries whose probability does not exceed the
    threshold are left out. The order of the queries is kept. With `"focal"` each pair of a query and a class stands for
    itself, so one query may speak for several classes: the `top_k` most likely pairs come out, those that exceed the
    threshold, the surest first; of equal ones, that of the earlier query, then that of the lower label. There is no
    non-maximum suppression: the set loss makes it unnecessary.

    Args:
        outputs: the model's outputs: `logits` `(batch, queries, classes + 1)`, last = no object, or with `"focal"`
            `(batch, queries, classes)`, and `pred_boxes` `(batch, queries, 4)` cxcywh in [0, 1] of the unpadded image.
        target_sizes: `(batch, 2)` height and width in pixels of the image that each result's boxes shall refer to,
            usually the original one.
        threshold: only detections with score > threshold are returned.
        classification: `"softmax"` (DETR) or `"focal"` (Conditional DETR), as the model was trained.
        top_k: with `"focal"`, how many detections at most.

    Returns:
        Per image `{"scores": (n,) float32, "labels": (n,) int64, "boxes": (n, 4) float32 xyxy in pixels}`.

    Raises:
        ValueError: `target_sizes` has not one row (height, width) per image, an unknown `classification`, or `top_k`
            below 1.

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
    logits: Any, threshold: float, classification: Classification = "softmax", top_k: int = TOP_K
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Which queries `post_process` lets speak, and for what.

    Returns:
        Per image scores `(n,)` float32, labels `(n,)` int64 and queries `(n,)` int64.

    Raises:
        ValueError: an unknown `classification`, or `top_k` below 1.
    """
    if classification not in get_args(Classification):
        raise ValueError(f"classification must be one of {get_args(Classification)}, not {classification!r}")
    logits = np.asarray(ops.convert_to_numpy(logits), np.float32)
    if classification == "softmax":
        probabilities = softmax(logits)[..., :-1]
        scores, labels = probabilities.max(-1), probabilities.argmax(-1)
        queries = np.broadcast_to(np.arange(logits.shape[1]), scores.shape)
    else:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        pairs = sigmoid(logits).reshape(len(logits), -1)
        order = np.argsort(-pairs, axis=1, kind="stable")[:, :top_k]
        scores = np.take_along_axis(pairs, order, axis=1)
        queries, labels = np.divmod(order, logits.shape[2])
    return [
        (score[keep], label[keep], query[keep])
        for score, label, query, keep in zip(scores, labels, queries, scores > threshold, strict=True)
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities, small ones as exact relative to themselves as large ones: some are compared with each other."""
    with np.errstate(over="ignore"):  # of float32 below -88; the probability is 0
        return 1 / (1 + np.exp(-logits))
