"""Losses and costs of masks at some points alone: most of them where the mask is least sure.

A mask is compared with its object's at a sixteenth of its pixels, which are drawn. Three quarters of the points are the
most uncertain of three times as many; so edges count most, and memory does not grow with the image.

Source:
    Kirillov et al. 2019, "PointRend", arXiv:1912.08193, section 3.1; for matching: Cheng et al. 2021, "Mask2Former",
    arXiv:2112.01527, section 3.3 ("Importance sampling"); numbers as in RF-DETR's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

RATIO = 16  # pixels of a mask to one point
OVERSAMPLING, UNCERTAIN_SHARE = 3, 0.75


def number_of_points(height: int, width: int, ratio: int = RATIO) -> int:
    """Return at how many points a mask is compared: a share of its pixels, but no fewer than it has rows."""
    return max(height, height * width // ratio)


def sample_bilinear(maps: Any, points: Any) -> Any:
    """Read maps between their pixels; beyond the outermost ones as at the edge.

    Args:
        maps: `(…, h, w)` float.
        points: `(…, n, 2)` float32, x and y from 0 to 1 over the map's whole area; `…` as of the maps.

    Returns:
        `(…, n)` float.
    """
    height, width = ops.shape(maps)[-2:]
    flat = ops.reshape(maps, (*ops.shape(maps)[:-2], height * width))
    return _between(lambda pixels: ops.take_along_axis(flat, pixels, axis=-1), points, height, width)


def shared_points(maps: Any, points: Any) -> Any:
    """Read channels of maps at points that all images share.

    Args:
        maps: `(batch, h, w, channels)` float.
        points: `(n, 2)` float32, as for `sample_bilinear`.

    Returns:
        `(batch, n, channels)` float.
    """
    height, width = ops.shape(maps)[1:3]
    flat = ops.reshape(maps, (ops.shape(maps)[0], height * width, maps.shape[-1]))
    return _between(lambda pixels: ops.take(flat, pixels[:, 0], axis=1), points[:, None], height, width)


def _between(read: Callable[[Any], Any], points: Any, height: Any, width: Any) -> Any:
    """Return what `read` finds at the four pixels around each point, each by its share; pixels are counted by rows."""
    ((left, right), x), ((top, bottom), y) = (
        _neighbours(points[..., axis], side) for axis, side in ((0, width), (1, height))
    )
    upper = read(top * width + left) * (1 - x) + read(top * width + right) * x
    lower = read(bottom * width + left) * (1 - x) + read(bottom * width + right) * x
    return upper * (1 - y) + lower * y


def _neighbours(places: Any, side: Any) -> tuple[tuple[Any, Any], Any]:
    """Return the pixels before and behind places from 0 to 1, kept within the map, and the share of the second."""
    last = ops.cast(side - 1, "float32")
    place = ops.clip(places * ops.cast(side, "float32") - 0.5, 0.0, last)
    first = ops.floor(place)
    return (ops.cast(first, "int32"), ops.cast(ops.minimum(first + 1, last), "int32")), place - first


def sample_nearest(masks: Any, points: Any) -> Any:
    """Read masks at the nearest pixel.

    Args:
        masks: `(…, height, width)`.
        points: `(…, n, 2)`, as for `sample_bilinear`.

    Returns:
        `(…, n)` float32.
    """
    height, width = ops.shape(masks)[-2:]
    flat = ops.reshape(masks, (*ops.shape(masks)[:-2], height * width))
    places = []
    for axis, side in ((0, width), (1, height)):
        place = ops.round(points[..., axis] * ops.cast(side, "float32") - 0.5)  # to even ones at the middle
        places.append(ops.cast(ops.clip(place, 0.0, ops.cast(side - 1, "float32")), "int32"))
    column, row = places
    return ops.cast(ops.take_along_axis(flat, row * width + column, axis=-1), "float32")


def uncertain_points(logits: Any, count: int, seed: Any = None, draws: Mapping[str, Any] | None = None) -> Any:
    """Choose points of masks, three quarters of them where the logits are nearest to 0.

    Args:
        logits: `(…, h, w)` float.
        count: points of each mask.
        seed: of the draws.
        draws: random numbers to use instead: `candidates` `(…, 3 · count, 2)` and `others` `(…, count − ⌊¾ count⌋, 2)`,
            in [0, 1).

    Returns:
        `(…, count, 2)` float32, x and y from 0 to 1; no gradient.
    """
    shape, certain = ops.shape(logits)[:-2], int(UNCERTAIN_SHARE * count)
    if draws is None:
        candidates = keras.random.uniform((*shape, OVERSAMPLING * count, 2), seed=seed)
        others = keras.random.uniform((*shape, count - certain, 2), seed=seed)
    else:
        candidates, others = draws["candidates"], draws["others"]
    uncertainty = -ops.abs(sample_bilinear(ops.stop_gradient(logits), candidates))
    _, chosen = ops.top_k(uncertainty, certain)
    points = ops.take_along_axis(candidates, ops.cast(chosen, "int32")[..., None], axis=-2)
    return ops.stop_gradient(ops.concatenate([points, others], axis=-2))


def point_losses(logits: Any, labels: Any) -> dict[str, Any]:
    """Compare masks with their objects' at points.

    Args:
        logits: `(…, n)` float32.
        labels: `(…, n)` float32, 0 or 1.

    Returns:
        `"loss_mask"`, the mean cross-entropy, and `"loss_dice"`, 1 − (2 Σ m p + 1) / (Σ m + Σ p + 1), `(…)` each.
    """
    cross_entropy = ops.mean(ops.softplus(logits) - labels * logits, axis=-1)
    probability = ops.sigmoid(logits)
    overlap, areas = ops.sum(labels * probability, axis=-1), ops.sum(labels + probability, axis=-1)
    return {"loss_mask": cross_entropy, "loss_dice": 1 - (2 * overlap + 1) / (areas + 1)}


def point_costs(logits: Any, labels: Any) -> dict[str, Any]:
    """Compare each query's mask with each object's at points that all share.

    Args:
        logits: `(batch, layers, queries, n)` float32.
        labels: `(batch, layers or 1, objects, n)` float32, 0 or 1.

    Returns:
        `"mask"` and `"dice"`, `(batch, layers, objects, queries)` each, as in `point_losses`.
    """
    count = ops.cast(ops.shape(logits)[-1], "float32")
    probability, logits = (ops.swapaxes(x, -1, -2) for x in (ops.sigmoid(logits), logits))  # (…, n, queries)
    cross_entropy = (ops.sum(ops.softplus(logits), axis=-2, keepdims=True) - ops.matmul(labels, logits)) / count
    areas = ops.sum(probability, axis=-2, keepdims=True) + ops.sum(labels, axis=-1, keepdims=True)
    return {"mask": cross_entropy, "dice": 1 - (2 * ops.matmul(labels, probability) + 1) / (areas + 1)}
