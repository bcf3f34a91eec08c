"""The sides of a box as distributions over distances: bins, what they mean, and the boxes that they make (D-FINE).

A reference box (cx, cy, w, h) has four sides, left, top, right and bottom. A distance of 0 leaves a side where it is,
one of `reg_scale` moves it outwards by the reference's whole width or height. Each side has logits over `bins + 1`
distances, which lie close together around 0 and far apart at the ends.

Source:
    Peng et al. 2024, "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement",
    arXiv:2410.13842, section 4.1.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from tfdetr_keras.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

BINS = 32
SIDES = 4  # left, top, right, bottom
LEAST_UNIT = 1e-16  # of a reference without width or height, so that its distances are finite


def bin_values(up: Any, reg_scale: Any, bins: int = BINS) -> Any:
    """Return the distances that the bins stand for, W(n).

    With b = |up · reg_scale|, t = (b + 1)^(2 / (bins − 2)) and k = 1 … bins / 2 − 1 they are 0, ±(tᵏ − 1) and ±2b.

    Args:
        up: scalar or `(1,)`, half of the greatest distance, in widths and heights.
        reg_scale: scalar or `(1,)`, see above.
        bins: how many steps there are between distances, an even number.

    Returns:
        `(bins + 1,)` float, in rising order.

    Source:
        D-FINE, section 4.1, the weighting function W(n).
    """
    bound = ops.abs(ops.reshape(up, (1,)) * ops.reshape(reg_scale, (1,)))
    step = (bound + 1.0) ** (2.0 / (bins - 2))
    inner = step ** ops.arange(1, bins // 2, dtype=bound.dtype) - 1.0
    return ops.concatenate([-2.0 * bound, -ops.flip(inner), ops.zeros_like(bound), inner, 2.0 * bound])


def expected_distances(logits: Any, values: Any) -> Any:
    """Return the mean distance of each side: the "integral" of its distribution.

    Args:
        logits: `(…, 4 · (bins + 1))` float, those of one side after the other.
        values: `(bins + 1,)`, the bins' distances.

    Returns:
        `(…, 4)` float: left, top, right, bottom.
    """
    return ops.sum(ops.softmax(of_sides(logits), axis=-1) * values, axis=-1)


def of_sides(logits: Any) -> Any:
    """Return logits `(…, 4 · (bins + 1))` as `(…, 4, bins + 1)`."""
    return ops.reshape(logits, (*ops.shape(logits)[:-1], SIDES, logits.shape[-1] // SIDES))


def distances_to_boxes(references: Any, distances: Any, reg_scale: Any) -> Any:
    """Move the sides of reference boxes.

    Args:
        references: `(…, 4)` cxcywh.
        distances: `(…, 4)`: left, top, right, bottom; positive ones lead outwards.
        reg_scale: scalar or `(1,)`, the distance that is a whole width or height.

    Returns:
        `(…, 4)` cxcywh; they may lie outside the image, and where sides have crossed, width or height is negative.

    Source:
        D-FINE, section 4.1.
    """
    scale = ops.abs(ops.reshape(reg_scale, ()))
    center, size = references[..., :2], references[..., 2:]
    unit = size / scale
    top_left = center - (0.5 * scale + distances[..., :2]) * unit
    bottom_right = center + (0.5 * scale + distances[..., 2:]) * unit
    return xyxy_to_cxcywh(ops.concatenate([top_left, bottom_right], axis=-1))


def boxes_to_distances(references: Any, boxes: Any, reg_scale: Any) -> Any:
    """Return the distances that make boxes of references: the inverse of `distances_to_boxes`.

    Args:
        references: `(…, 4)` cxcywh.
        boxes: `(…, 4)` cxcywh.
        reg_scale: scalar or `(1,)`, the distance that is a whole width or height.

    Returns:
        `(…, 4)` float: left, top, right, bottom.
    """
    scale = ops.abs(ops.reshape(reg_scale, ()))
    center, unit = references[..., :2], references[..., 2:] / scale + LEAST_UNIT
    corners = cxcywh_to_xyxy(boxes)
    top_left, bottom_right = center - corners[..., :2], corners[..., 2:] - center
    return ops.concatenate([top_left / unit, bottom_right / unit], axis=-1) - 0.5 * scale


def neighbouring_bins(distances: Any, values: Any) -> tuple[Any, Any]:
    """Find the two bins between which each distance lies.

    Args:
        distances: `(…)` float.
        values: `(bins + 1,)`, the bins' distances in rising order.

    Returns:
        `(…)` int32, the lower bin, of 0 … bins − 1; and `(…)` float in [0, 1], the share of the bin above it, so that
        the mean of both is the distance. What lies below all bins is wholly the first's, what lies above, the last's.

    Source:
        D-FINE, section 4.1, the weights of the fine-grained localization loss.
    """
    count = ops.sum(ops.cast(ops.expand_dims(distances, -1) >= values, "int32"), axis=-1)
    lower = ops.clip(count - 1, 0, values.shape[0] - 2)
    start, end = ops.take(values, lower), ops.take(values, lower + 1)
    return lower, ops.clip((distances - start) / (end - start), 0.0, 1.0)
