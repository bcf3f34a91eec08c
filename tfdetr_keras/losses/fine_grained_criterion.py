"""The set criterion of boxes whose sides are distributions, with one set of pairs for the boxes of all layers (D-FINE).

Source:
    Peng et al. 2024, "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement",
    arXiv:2410.13842, sections 4.1 and 4.2, and the authors' code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from tfdetr_keras.backend.replicas import sum_over_replicas
from tfdetr_keras.boxes import cxcywh_to_xyxy, iou
from tfdetr_keras.layers.distance_bins import boxes_to_distances, of_sides
from tfdetr_keras.losses.criterion import DECODER, Pairs, PredictionSet, SetCriterion, box_losses
from tfdetr_keras.losses.fine_grained import distillation_losses, localization_losses, union_of_matchings
from tfdetr_keras.losses.targets import PADDING_LABEL
from tfdetr_keras.matching.classification import Classification


class _ByQuery(NamedTuple):
    """The pairs of a set, which are the same in all its layers, query by query.

    Attributes:
        is_pair: `(batch, 1, queries)` bool.
        boxes: `(batch, 1, queries, 4)` float32 cxcywh, those of the objects; anything where there is none.
        is_other: `(batch, 1, queries)` bool, the queries that count and have no object.
    """

    is_pair: Any
    boxes: Any
    is_other: Any


@keras.saving.register_keras_serializable(package="tfdetr_keras")
@dataclasses.dataclass(frozen=True)
class FineGrainedCriterion(SetCriterion):
    """Trains distributions of the boxes' sides, and all layers' boxes on the union of their matchings.

    Classes of each layer are trained on its own matching. Boxes of all layers, and of every other set that is matched
    (of the pre-head, of the encoder), are trained on one union of all these matchings: each query with the object that
    it was given most often. N′, the number of its pairs, takes the place of N. Sets with given pairs (denoising) keep
    theirs. For each layer that has distributions, with IoU that of the layer's own box and its object's, without a
    gradient,

    * `loss_fgl` = Σ IoU · (cross-entropy of the four sides and the distances of the true box) / N′ over the pairs;
    * `loss_ddf`, in all layers but the last, whose distributions are the teacher's: the mean over the pairs of IoU · T²
      KL(teacher / T ‖ layer / T), and the mean over all other queries of the same with the teacher's highest
      probability of a class in place of the IoU, weighted by √n₊ and √n₋, the numbers of both in the union.

    In training the outputs and the denoising set have `corners` `(batch, layers, queries, 4 · (bins + 1))`, logits of
    the distributions of all layers, the last one last, and `references` `(batch, queries, 4)` cxcywh, the boxes that
    their distances are told from; the outputs also `bin_values` `(bins + 1,)` and `reg_scale`, scalar or `(1,)`, see
    `tfdetr_keras.layers.distance_bins`. The queries of all sets that are matched are the same, and in one group. The
    pairs of a denoising set are the same in all its layers. Where there are no `corners`, as in evaluation, boxes are
    trained alone.

    Args:
        fgl_loss_coefficient: weight of `loss_fgl` in the total.
        ddf_loss_coefficient: weight of `loss_ddf` in the total.
        ddf_temperature: T.

    Source:
        D-FINE, sections 4.1 and 4.2; weights, temperature and the union as in the authors' code.
    """

    cost_class: float = 2.0
    classification: str | Classification = "varifocal"
    fgl_loss_coefficient: float = 0.15
    ddf_loss_coefficient: float = 1.5
    ddf_temperature: float = 5.0

    def __call__(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the losses of a batch, as `SetCriterion`; with them `loss_fgl`, `loss_fgl_{i}` and `loss_ddf_{i}`."""
        losses = super().__call__(outputs, targets)
        losses.pop("loss_ddf", None)  # of the decoder's last layer, which is the teacher
        return losses

    def _losses_of_sets(
        self, sets: Mapping[str, PredictionSet], pairs: Mapping[str, Pairs], targets: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        union = _union(sets, pairs)
        decoder = sets[DECODER].predictions
        of_union = _by_query(union, sets[DECODER])
        losses = {}
        for name, one in sets.items():
            of_boxes = pairs[name] if "queries" in one.predictions else _in_layers(union, one)
            losses[name] = self._class_losses(one, pairs[name]) | box_losses(one, of_boxes)
            if "corners" in one.predictions:
                by_query = _by_query(of_boxes, one) if "queries" in one.predictions else of_union
                bins = decoder["bin_values"], decoder["reg_scale"]
                losses[name] |= self._losses_of_corners(one, by_query, of_union, of_boxes.count, *bins)
        return losses

    def _losses_of_corners(
        self, one: PredictionSet, pairs: _ByQuery, union: _ByQuery, count: Any, values: Any, reg_scale: Any
    ) -> dict[str, Any]:
        """Return `loss_fgl` and `loss_ddf` of each layer, `(layers,)`; the last layer's `loss_ddf` is 0."""
        corners, references, values, reg_scale = (
            ops.cast(x, "float32")
            for x in (one.predictions["corners"], one.predictions["references"], values, reg_scale)
        )
        corners = of_sides(corners)
        overlap = iou(cxcywh_to_xyxy(ops.stop_gradient(one.boxes)), cxcywh_to_xyxy(pairs.boxes))
        overlap = ops.where(pairs.is_pair, overlap, 0.0)  # (batch, layers, queries)
        distances = boxes_to_distances(ops.stop_gradient(references)[:, None], pairs.boxes, reg_scale)
        fgl = overlap * localization_losses(corners, distances, values)

        apart = distillation_losses(corners[:, :-1], corners[:, -1:], self.ddf_temperature)
        confidence = ops.stop_gradient(ops.sigmoid(ops.max(one.logits[:, -1:], axis=-1)))
        of_pairs = _mean(overlap[:, :-1] * apart, pairs.is_pair)
        of_others = _mean(confidence * apart, pairs.is_other)
        share, other = (ops.sqrt(_count(which)) for which in (union.is_pair, union.is_other))
        ddf = (share * of_pairs + other * of_others) / (share + other)
        return {"loss_fgl": ops.sum(fgl, axis=(0, 2)) / count, "loss_ddf": ops.concatenate([ddf, ops.zeros((1,))])}

    @property
    def _coefficients(self) -> dict[str, float]:
        own = {"loss_fgl": self.fgl_loss_coefficient, "loss_ddf": self.ddf_loss_coefficient}
        return super()._coefficients | own


def _union(sets: Mapping[str, PredictionSet], pairs: Mapping[str, Pairs]) -> Pairs:
    """Return the union of all matchings as pairs, one row for each query; `queries` has one layer."""
    matched = [pairs[name].queries for name, one in sets.items() if "queries" not in one.predictions]
    num_queries = ops.shape(sets[DECODER].logits)[2]
    objects = union_of_matchings(matched, num_queries)
    labels = ops.pad(pairs[DECODER].labels, [[0, 0], [0, 1]], constant_values=PADDING_LABEL)
    boxes = ops.pad(pairs[DECODER].boxes, [[0, 0], [0, 1], [0, 0]])
    labels = ops.take_along_axis(labels, objects, axis=1)
    queries = ops.where(labels >= 0, ops.arange(num_queries, dtype="int32"), -1)
    count = ops.maximum(_count(labels >= 0), 1.0)
    return Pairs(queries[:, None], labels, ops.take_along_axis(boxes, objects[..., None], axis=1), count)


def _in_layers(union: Pairs, one: PredictionSet) -> Pairs:
    """Return the union as pairs of each layer of a set."""
    return union._replace(queries=ops.broadcast_to(union.queries, ops.shape(one.logits)[:3]))


def _by_query(pairs: Pairs, one: PredictionSet) -> _ByQuery:
    """Return the pairs of the first layer of a set, query by query."""
    is_match = ops.one_hot(pairs.queries[:, 0], ops.shape(one.logits)[2], dtype="int32")  # (batch, pairs, queries)
    is_pair = ops.max(is_match, axis=1) > 0
    place = ops.cast(ops.argmax(is_match, axis=1), "int32")
    is_other = ops.logical_not(is_pair)
    if "query_mask" in one.predictions:
        is_other = ops.logical_and(is_other, one.predictions["query_mask"])
    boxes = ops.take_along_axis(pairs.boxes, place[..., None], axis=1)
    return _ByQuery(is_pair[:, None], boxes[:, None], is_other[:, None])


def _count(which: Any) -> Any:
    """Return how many are True in the whole batch, float32."""
    return sum_over_replicas(ops.sum(ops.cast(which, "float32")))


def _mean(values: Any, which: Any) -> Any:
    """Return the means of `(batch, layers, queries)` over the queries of the whole batch that count, `(layers,)`."""
    return ops.sum(ops.where(which, values, 0.0), axis=(0, 2)) / ops.maximum(_count(which), 1.0)
