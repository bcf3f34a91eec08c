"""From the model's outputs to detections in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops


def post_process(outputs: Mapping[str, Any], target_sizes: Any, threshold: float = 0.5) -> list[dict[str, np.ndarray]]:
    """Turns logits and relative boxes into one detection list per image.

    Each query speaks for its most likely real class; queries whose probability does not exceed the threshold are left
    out. The order of the queries is kept. There is no non-maximum suppression: the set loss makes it unnecessary.

    Args:
        outputs: the model's outputs: `logits` `(batch, queries, classes + 1)`, last = no object, and `pred_boxes`
            `(batch, queries, 4)` cxcywh in [0, 1] of the unpadded image.
        target_sizes: `(batch, 2)` height and width in pixels of the image that each result's boxes shall refer to,
            usually the original one.
        threshold: only detections with score > threshold are returned.

    Returns:
        Per image `{"scores": (n,) float32, "labels": (n,) int64, "boxes": (n, 4) float32 xyxy in pixels}`.

    Raises:
        ValueError: `target_sizes` has not one row (height, width) per image.

    Source:
        DETR, section 4 ("Implementation details").
    """
    logits = np.asarray(ops.convert_to_numpy(outputs["logits"]), np.float32)
    boxes = np.asarray(ops.convert_to_numpy(outputs["pred_boxes"]), np.float32)
    sizes = np.asarray(ops.convert_to_numpy(target_sizes), np.float32)
    if sizes.shape != (len(logits), 2):
        raise ValueError(
            f"target_sizes must be (height, width) for each of the {len(logits)} images, not of shape {sizes.shape}"
        )
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(-1, keepdims=True))[..., :-1]
    labels, scores = probabilities.argmax(-1), probabilities.max(-1)

    centers, sides = boxes[..., :2], boxes[..., 2:]
    corners = np.concatenate([centers - 0.5 * sides, centers + 0.5 * sides], axis=-1)
    corners *= np.tile(sizes[:, ::-1], 2)[:, None, :]
    return [
        {"scores": score[keep], "labels": label[keep], "boxes": box[keep]}
        for score, label, box, keep in zip(scores, labels, corners, scores > threshold, strict=True)
    ]
