"""The set criterion of models whose every layer, group and proposal has masks, which are compared at points (RF-DETR).

Source:
    Robinson et al. 2025, "RF-DETR", arXiv:2511.09554, and its code (`rfdetr`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from tfdetr_keras.layers.segmentation_head import masks_of
from tfdetr_keras.losses.criterion import Pairs, SetCriterion, true_masks
from tfdetr_keras.losses.point_masks import (
    number_of_points,
    point_costs,
    point_losses,
    sample_bilinear,
    sample_nearest,
    shared_points,
    uncertain_points,
)

EVALUATION_SEED = 0
USUAL_SIDE = 108  # of the masks of evaluation, where it is not known


@keras.saving.register_keras_serializable(package="tfdetr_keras")
@dataclasses.dataclass(frozen=True)
class PointMaskCriterion(SetCriterion):
    """Adds masks to the matching and to the losses of every decoder layer, group of queries and prediction set.

    Per layer, with σ the matching, N the number of objects and P points of each mask, see `point_masks`:

    * `loss_mask` = Σ_objects (1 / P) Σ_points cross-entropy / N, and `loss_dice` likewise of 1 − (2 Σ m p + 1) / (Σ m +
      Σ p + 1);
    * the cost of a pair has the same two terms, at points that all pairs share.

    In training the outputs have `point_masks`: `"features"` `(batch, layers, h, w, channels)`, `"queries"` `(batch,
    layers, queries, channels)` and `"bias"`, of which masks are the products; `"canvas"`, the usual height and width of
    masks, where those of the features are not known; and `"seed"`, of the draws, or `"draws"`: `"matching"` `(layers,
    n, 2)`, and `"layers"`, for each layer what `uncertain_points` takes. In evaluation they have `pred_masks`, of which
    those of the last layer's pairs are compared, always at points of the same draws.

    Args:
        cost_mask: weight of the cross-entropy in the matching.
        cost_dice: weight of DICE in the matching.
        point_ratio: pixels of a mask to one point.
    """

    mask_loss_coefficient: float = 5.0
    dice_loss_coefficient: float = 5.0
    cost_mask: float = 5.0
    cost_dice: float = 5.0
    point_ratio: int = 16

    def _further_cost(self, predictions: Mapping[str, Any], targets: Mapping[str, Any], groups: int) -> Any:
        parts = predictions.get("point_masks")
        if parts is None:
            return None
        features, queries = (ops.cast(ops.stop_gradient(parts[name]), "float32") for name in ("features", "queries"))
        depth, height, width = features.shape[1], *_sides(parts)
        draws = parts.get("draws")
        count = max(1, height * width // self.point_ratio)
        points = keras.random.uniform((depth, count, 2), seed=parts.get("seed")) if draws is None else draws["matching"]
        masks = true_masks(targets)
        costs = []
        for layer in range(depth):
            own = points[layer]
            read = shared_points(features[:, layer], own)  # (batch, n, channels)
            logits = ops.matmul(queries[:, layer], ops.swapaxes(read, 1, 2)) + ops.cast(parts["bias"], "float32")
            batch, rows, count = ops.shape(logits)
            logits = ops.reshape(logits, (batch, groups, rows // groups, count))
            everywhere = ops.broadcast_to(own, (*ops.shape(masks)[:2], *ops.shape(own)))
            found = point_costs(logits, sample_nearest(masks, everywhere)[:, None])
            costs.append(self.cost_mask * found["mask"] + self.cost_dice * found["dice"])
        return ops.concatenate(costs, axis=1)

    def _further_losses(
        self, predictions: Mapping[str, Any], pairs: Pairs, targets: Mapping[str, Any], groups: int
    ) -> dict[str, Any]:
        parts = predictions.get("point_masks")
        if parts is None:
            return {}
        features, embeddings = parts["features"], parts["queries"]
        depth, masks = features.shape[1], true_masks(targets)
        count, draws = number_of_points(*_sides(parts), self.point_ratio), parts.get("draws")
        batch, objects = ops.shape(masks)[:2]
        found: dict[str, list[Any]] = {"loss_mask": [], "loss_dice": []}
        for layer in range(depth):
            matched = pairs.queries[:, layer * groups : (layer + 1) * groups]  # (batch, groups, objects)
            of_groups = ops.reshape(embeddings[:, layer], (batch, groups, -1, embeddings.shape[-1]))
            own = ops.take_along_axis(of_groups, ops.maximum(matched, 0)[..., None], axis=2)
            own = ops.reshape(own, (batch, groups * objects, embeddings.shape[-1]))
            logits = masks_of(features[:, layer], own, parts["bias"])
            points = uncertain_points(
                logits, count, parts.get("seed"), None if draws is None else draws["layers"][layer]
            )
            read = sample_bilinear(logits, points)
            # Groups beside each other: the masks of the objects are not copied for each.
            by_object = ops.transpose(ops.reshape(points, (batch, groups, objects, count, 2)), (0, 2, 1, 3, 4))
            labels = sample_nearest(masks, ops.reshape(by_object, (batch, objects, groups * count, 2)))
            labels = ops.transpose(ops.reshape(labels, (batch, objects, groups, count)), (0, 2, 1, 3))
            losses = point_losses(ops.reshape(read, (batch, groups, objects, count)), labels)
            for name, values in losses.items():
                found[name].append(ops.sum(ops.where(matched >= 0, values, 0.0), axis=(0, 2)) / pairs.count)
        return {name: ops.concatenate(of_layers) for name, of_layers in found.items()}

    def _losses_of_masks(self, pred_masks: Any, masks: Any, is_pair: Any, num_boxes: Any) -> dict[str, Any]:
        height, width = pred_masks.shape[2:]
        count = number_of_points(height or USUAL_SIDE, width or USUAL_SIDE, self.point_ratio)
        points = uncertain_points(pred_masks, count, seed=EVALUATION_SEED)
        losses = point_losses(sample_bilinear(pred_masks, points), sample_nearest(masks, points))
        return {name: ops.sum(ops.where(is_pair, values, 0.0)) / num_boxes for name, values in losses.items()}


def criterion_with_masks(criterion: SetCriterion) -> PointMaskCriterion:
    """Return a detector's criterion that looks at masks, too, with the weights of RF-DETR's authors for these."""
    of_masks = ("mask_loss_coefficient", "dice_loss_coefficient")
    fields = [field.name for field in dataclasses.fields(SetCriterion) if field.name not in of_masks]
    return PointMaskCriterion(**{name: getattr(criterion, name) for name in fields})


def _sides(parts: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the masks; the usual ones where they are not known."""
    height, width = parts["features"].shape[2:4]
    return parts["canvas"] if height is None or width is None else (height, width)
