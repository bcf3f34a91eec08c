"""How far detections of two sides are from each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

PARTS = ("logits", "pred_boxes")


def apart(found: Mapping[str, Any], wanted: Mapping[str, Any], is_ordered: bool = True) -> tuple[float, float]:
    """The largest differences of logits and of boxes.

    Args:
        found: `PARTS`, each `(batch, queries, …)`.
        wanted: the same.
        is_ordered: whether queries have an order. If not, each is compared with the nearest of the other side, and the
            other way round.
    """
    pairs = [(np.asarray(found[part], np.float32), np.asarray(wanted[part], np.float32)) for part in PARTS]
    if is_ordered:
        logits, boxes = (float(np.abs(a - b).max()) for a, b in pairs)
        return logits, boxes
    largest = np.zeros(2)
    for image in zip(*(zip(a, b, strict=True) for a, b in pairs), strict=True):
        distances = [np.abs(a[:, None] - b[None]).max(-1) for a, b in image]
        for axis in (0, 1):
            nearest = np.expand_dims(sum(distances).argmin(axis), axis)
            largest = np.maximum(largest, [np.take_along_axis(one, nearest, axis).max() for one in distances])
    return float(largest[0]), float(largest[1])
