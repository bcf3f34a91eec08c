"""Boxes: the two formats of DETR, and the overlap measures of its loss.

`cxcywh` is (centre x, centre y, width, height), the network's predictions, relative to the image without its padding.
`xyxy` is (left, top, right, bottom). Everything here is elementwise over leading axes and broadcasts: pairwise values
come from `boxes1[..., :, None, :]` against `boxes2[..., None, :, :]`.
"""

from __future__ import annotations

from typing import Any

from keras import ops


def cxcywh_to_xyxy(boxes: Any) -> Any:
    """Convert `(..., 4)` boxes from (centre x, centre y, width, height) to (left, top, right, bottom)."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return ops.concatenate([center - 0.5 * size, center + 0.5 * size], axis=-1)


def with_sides(boxes: Any) -> Any:
    """Return `(..., 4)` cxcywh boxes with a width or height of 0 where it is negative, as a prediction's may be."""
    return ops.concatenate([boxes[..., :2], ops.maximum(boxes[..., 2:], 0.0)], axis=-1)


def xyxy_to_cxcywh(boxes: Any) -> Any:
    """Convert `(..., 4)` boxes from (left, top, right, bottom) to (centre x, centre y, width, height)."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return ops.concatenate([(top_left + bottom_right) / 2, bottom_right - top_left], axis=-1)


def box_area(boxes: Any) -> Any:
    """Return the area of `(..., 4)` xyxy boxes as `(...)`; 0 for an inverted box."""
    sides = ops.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def _intersection_and_union(boxes1: Any, boxes2: Any) -> tuple[Any, Any]:
    top_left = ops.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = ops.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = box_area(ops.concatenate([top_left, bottom_right], axis=-1))
    return intersection, box_area(boxes1) + box_area(boxes2) - intersection


def iou(boxes1: Any, boxes2: Any) -> Any:
    """Return the intersection over union of xyxy boxes.

    Args:
        boxes1: `(..., 4)` float, xyxy.
        boxes2: `(..., 4)` float, xyxy, broadcastable against `boxes1`.

    Returns:
        `(...)` in [0, 1]; 0 where both boxes have no area.
    """
    intersection, union = _intersection_and_union(boxes1, boxes2)
    return ops.divide_no_nan(intersection, union)


def generalized_iou(boxes1: Any, boxes2: Any) -> Any:
    """Return the generalised intersection over union of xyxy boxes.

    GIoU = IoU − (|C| − |A ∪ B|) / |C| with C the smallest box around both. No epsilon is added (as in the PyTorch
    reference); where a denominator is exactly zero, its term and that term's gradient are zero instead of NaN.

    Args:
        boxes1: `(..., 4)` float, xyxy.
        boxes2: `(..., 4)` float, xyxy, broadcastable against `boxes1`.

    Returns:
        `(...)` in [−1, 1].

    Source:
        Rezatofighi et al. 2019, "Generalized Intersection over Union", algorithm 1; DETR, equation 2 of section 3.1
        and appendix A.2.
    """
    intersection, union = _intersection_and_union(boxes1, boxes2)
    top_left = ops.minimum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = ops.maximum(boxes1[..., 2:], boxes2[..., 2:])
    hull = box_area(ops.concatenate([top_left, bottom_right], axis=-1))
    return ops.divide_no_nan(intersection, union) - ops.divide_no_nan(hull - union, hull)
