"""The set criterion: the losses of a matched set of predictions (DETR, section 3.1, equation 2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from tfdetr_keras.backend.replicas import number_of_replicas, sum_over_replicas
from tfdetr_keras.boxes import cxcywh_to_xyxy, generalized_iou, iou, with_sides
from tfdetr_keras.losses.masks import mask_losses
from tfdetr_keras.losses.targets import PADDING_LABEL, dense_targets, validate_batch
from tfdetr_keras.matching.classification import SHORT, Classification, Weighting, classification_named
from tfdetr_keras.matching.matcher import match

NEVER = -1e4  # the logit of a class that is not there
PUBLISHED: Any = None  # of a coefficient: as the classification's authors have it
DECODER = ""  # the name of the decoder's own layers among the prediction sets


class PredictionSet(NamedTuple):
    """What some layers predict, in groups of queries one after the other.

    Attributes:
        logits: `(batch, layers · groups, queries, logits)` float32.
        boxes: `(batch, layers · groups, queries, 4)` float32, cxcywh.
        groups: how many groups a layer has.
        predictions: what the model gave.
    """

    logits: Any
    boxes: Any
    groups: int
    predictions: Mapping[str, Any]


class Pairs(NamedTuple):
    """Pairs of a query and an object in each layer of a set.

    Attributes:
        queries: `(batch, layers · groups, pairs)` int32, −1 = no pair.
        labels: `(batch, pairs)` int32, the objects' classes.
        boxes: `(batch, pairs, 4)` float32, the objects' boxes.
        count: scalar, the pairs of a layer in the whole batch, at least 1; sums over them are divided by it.
    """

    queries: Any
    labels: Any
    boxes: Any
    count: Any


@keras.saving.register_keras_serializable(package="tfdetr_keras")
@dataclasses.dataclass(frozen=True)
class SetCriterion:
    """Matches predictions to objects in every decoder layer and sums the losses of the pairs.

    Per layer, with σ the matching and N the number of objects of the batch (at least 1):

    * `loss_ce`, softmax: Σ w(c)·(−log p(c)) / Σ w(c) over all queries, c = the matched class or "no object", w("no
      object") = `eos_coefficient`, other weights `class_weights`;
    * `loss_ce`, focal: Σ w(c)·αₜ (1 − pₜ)^γ (−log pₜ) / N over all queries and classes c, pₜ = the probability of
      the right answer and αₜ = α for the matched class, 1 − α for all others;
    * `loss_ce`, varifocal: Σ w(c)·v·(cross-entropy of σ(x) and q) / N over all queries and classes: for the matched
      class v = q = the IoU of the pair's boxes, for all others q = 0 and v = α pᵞ, p = σ(x); no gradient through v, q;
    * `loss_ce`, matchability-aware: Σ w(c)·v·(cross-entropy of σ(x) and q) / N; for the matched class q = IoUᵞ and v =
      1, for all others q = 0 and v = α pᵞ; no gradient through v, q;
    * `loss_ce`, IoU-aware: Σ w(c)·(−t log p − v log(1 − p)) / N; for the matched class t = max(pᵅ IoU^(1 − α), 0.01),
      without a gradient, and v = 1 − t, for all others t = 0 and v = pᵞ;
    * `loss_bbox` = Σ ‖b − b̂‖₁ / N and `loss_giou` = Σ (1 − GIoU(b, b̂)) / N over the matched pairs;
    * `loss_mask` and `loss_dice` of models that predict masks, of the last layer alone: see `mask_losses`.

    Each decoder layer is matched and counted on its own (the paper's auxiliary losses), and so is each layer of further
    prediction sets: the encoder's proposals, groups of queries, denoising. Everything is computed in float32, whatever
    the dtype of the outputs. Under a `tf.distribute` strategy Σ w(c) and N are those of the whole batch, and each
    replica's losses are its share: their sum over the replicas is the loss of the whole batch.

    Args:
        cost_class: weight of the class term in the matching.
        cost_bbox: weight of the L1 box distance in the matching.
        cost_giou: weight of the generalised IoU in the matching.
        class_loss_coefficient: weight of `loss_ce` in the total.
        bbox_loss_coefficient: weight of `loss_bbox` in the total.
        giou_loss_coefficient: weight of `loss_giou` in the total.
        mask_loss_coefficient: weight of `loss_mask` in the total.
        dice_loss_coefficient: weight of `loss_dice` in the total.
        eos_coefficient: weight of the "no object" class within `loss_ce`; not used with `"focal"`.
        class_weights: weight of each real class within `loss_ce`; 1 where left out.
        label_smoothing: share ε of every class label that is spread over all classes, "no object" included; with
            `"focal"`, targets 1 and 0 become 1 − ε/2 and ε/2.
        classification: `"softmax"`, for outputs with a "no object" class, or `"focal"`, for outputs with an independent
            sigmoid per class and no "no object" (Deformable and Conditional DETR); `"varifocal"`, the same with the
            quality of its box as a query's score (RT-DETR); `"matchability_aware"`, the same with DEIM's loss;
            `"iou_aware"`, with a mean of both (LW-DETR, RF-DETR); or a `Classification`.
        focal_alpha: α of the focal and the IoU-aware loss, 0.25 where left out; of the varifocal loss, 0.75 there, of
            the matchability-aware loss 1.
        focal_gamma: γ of all, 2 where left out; of the matchability-aware loss, 1.5 there.

    Raises:
        ValueError: an unknown `classification`, a share or weight that is out of range.

    Source:
        DETR, section 3.1 equation 2, section 3.2 ("Auxiliary decoding losses"), appendix A.2 and A.4; focal loss: Lin
        et al. 2017, "Focal Loss for Dense Object Detection", arXiv:1708.02002, equation 5; varifocal loss: Zhang et al.
        2021, "VarifocalNet", arXiv:2008.13367, equation 2; matchability-aware loss: Huang et al. 2024, "DEIM",
        arXiv:2412.04234, section 3; label smoothing of weighted classes as
        `torch.nn.CrossEntropyLoss`, of focal targets as `keras.losses.BinaryFocalCrossentropy`.
    """

    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    class_loss_coefficient: float = 1.0
    bbox_loss_coefficient: float = 5.0
    giou_loss_coefficient: float = 2.0
    mask_loss_coefficient: float = 1.0
    dice_loss_coefficient: float = 1.0
    eos_coefficient: float = 0.1
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    classification: str | Classification = "softmax"
    focal_alpha: float = PUBLISHED
    focal_gamma: float = PUBLISHED

    def __post_init__(self) -> None:
        named = classification_named(self.classification)
        if SHORT.get(getattr(named, "name", "")) == named:  # files have the short name
            object.__setattr__(self, "classification", named.name)
        for name in ("alpha", "gamma"):
            if getattr(self, f"focal_{name}") is None:
                object.__setattr__(self, f"focal_{name}", getattr(named, name))
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        if self.label_smoothing and named.wants_quality:
            raise ValueError(
                f"label_smoothing={self.label_smoothing}: a query's score is the quality of its box here "
                f"(classification={named.name!r}), which is not smoothed; leave it out"
            )
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", tuple(float(weight) for weight in self.class_weights))
            if not all(0.0 <= weight < math.inf for weight in self.class_weights):
                raise ValueError(f"class_weights must be finite and not negative, not {self.class_weights}")

    @property
    def has_no_object_class(self) -> bool:
        """Whether the last logit stands for "no object"."""
        return classification_named(self.classification).has_no_object

    def __call__(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the losses of a batch.

        Args:
            outputs: `logits` `(batch, queries, classes + 1)`, last = no object, or `(batch, queries, classes)` with
                `"focal"`; `pred_boxes` `(batch, queries, 4)` cxcywh; optionally `aux_logits` `(batch, layers − 1,
                queries, …)` and `aux_boxes` `(batch, layers − 1, queries, 4)` of the earlier decoder layers; and
                `pred_masks` `(batch, queries, h, w)` logits, or a function that takes queries `(batch, objects)` int
                and gives theirs alone, `(batch, objects, h, w)`; and `prediction_sets`, name → set. A set has `logits`
                `(batch, layers, queries, logits)` and `pred_boxes` `(batch, layers, queries, 4)`. It may have `queries`
                `(batch, layers, pairs)` int and `objects` `(batch, pairs)` int, pairs that are given in place of being
                matched (−1 in `queries` = no pair), whose number then stands for N; `labels` `(batch, objects)` int,
                where its classes are others than the targets'; `query_mask` `(queries,)` bool, True for queries that
                count, of which others say nothing about any class (for sigmoids alone); and a `coefficient`, scalar, of
                its losses in the total. `groups` int, of the outputs or of a set, says that its queries are so many
                groups, one after the other: each is matched on its own, and losses are means over the groups.
            targets: `labels` `(batch, objects)` int, −1 = padding row, `boxes` `(batch, objects, 4)` float, cxcywh in
                [0, 1] of the unpadded image; dense, or both `tf.RaggedTensor`. With `pred_masks` also `masks` `(batch,
                objects, height, width)` of the padded images. Further keys are not looked at.

        Returns:
            Scalars by name: `loss` (the weighted total), `loss_ce`, `loss_bbox`, `loss_giou`, `cardinality_error` and,
            with `pred_masks`, `loss_mask` and `loss_dice` of the last layer, `loss_ce_{i}`, `loss_bbox_{i}`,
            `loss_giou_{i}` of the earlier layers i = 0, 1, … and `loss_ce_{set}_{i}`, … of all layers of a set.

        Raises:
            ValueError: targets that are malformed or hold labels or boxes out of range (on concrete tensors; inside a
                traced function the data pipeline checks them); `class_weights` of another number of classes than
                the logits have.
        """
        num_classes = outputs["logits"].shape[-1] - self.has_no_object_class
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} weights, but there are {num_classes} classes"
            )
        targets = dense_targets(targets)
        validate_batch(targets, num_classes)
        labels = ops.cast(ops.convert_to_tensor(targets["labels"]), "int32")
        boxes = ops.cast(ops.convert_to_tensor(targets["boxes"]), "float32")
        boxes = ops.where(labels[..., None] >= 0, boxes, 0.0)  # padding may hold anything, NaN too
        num_objects = ops.sum(ops.cast(labels >= 0, "float32"), axis=-1)
        of_batch = sum_over_replicas(ops.sum(num_objects))

        decoder = {**outputs, **dict(zip(("logits", "pred_boxes"), _all_layers(outputs), strict=True))}
        sets = {DECODER: _prediction_set(decoder)}
        sets |= {name: _prediction_set(one) for name, one in outputs.get("prediction_sets", {}).items()}
        pairs = {name: self._pairs(one, labels, boxes, of_batch, targets) for name, one in sets.items()}
        losses = self._losses_of_sets(sets, pairs, targets)

        last = {name: values[-1] for name, values in losses[DECODER].items()}
        total = self._weighted(losses[DECODER])
        if "pred_masks" in outputs:
            queries, num_boxes = pairs[DECODER].queries[:, -1], pairs[DECODER].count
            paired = _paired_masks(outputs["pred_masks"], queries)
            last |= self._losses_of_masks(paired, true_masks(targets), queries >= 0, num_boxes)
            total += self.mask_loss_coefficient * last["loss_mask"] + self.dice_loss_coefficient * last["loss_dice"]
        others: dict[str, Any] = {}
        for of_set, of_layers in losses.items():
            predictions, suffix = sets[of_set].predictions, f"_{of_set}"
            earlier = range(predictions["logits"].shape[1])
            if of_set == DECODER:
                earlier, suffix = earlier[:-1], ""
            else:
                total += predictions.get("coefficient", 1.0) * self._weighted(of_layers)
            others |= {f"{name}{suffix}_{layer}": own[layer] for layer in earlier for name, own in of_layers.items()}
        groups = sets[DECODER].groups
        cardinality_error = self._cardinality_error(sets[DECODER].logits[:, -groups], num_objects)
        return {"loss": total, **last, "cardinality_error": cardinality_error, **others}

    def _match(self, logits: Any, pred_boxes: Any, labels: Any, boxes: Any, further_cost: Any = None) -> Any:
        """Return the query of each object, `(batch, layers, objects)` int32; −1 for padding."""
        weights = (self.cost_class, self.cost_bbox, self.cost_giou)
        return match(logits, pred_boxes, labels, boxes, *weights, self.classification, further_cost)

    def _further_cost(self, predictions: Mapping[str, Any], targets: Mapping[str, Any], groups: int) -> Any:
        """Return what else speaks against a pair, `(batch, layers · groups, objects, queries)`; None for nothing."""
        return None

    def _further_losses(
        self, predictions: Mapping[str, Any], pairs: Pairs, targets: Mapping[str, Any], groups: int
    ) -> dict[str, Any]:
        """Return further losses of the pairs by name, `(layers · groups,)` each."""
        return {}

    def _pairs(self, one: PredictionSet, labels: Any, boxes: Any, of_batch: Any, targets: Mapping[str, Any]) -> Pairs:
        """Return the pairs of a set: those of the matching, or those that are given."""
        predictions = one.predictions
        if "labels" in predictions:
            labels = ops.where(labels >= 0, ops.cast(predictions["labels"], "int32"), -1)
        if "queries" not in predictions:
            further_cost = self._further_cost(predictions, targets, one.groups)
            queries = self._match(one.logits, one.boxes, labels, boxes, further_cost)
            return Pairs(queries, labels, boxes, _at_least_one(of_batch, one.groups))
        # One row more, which is padding, for pairs of nothing; and there may be no row at all.
        labels = ops.pad(labels, [[0, 0], [0, 1]], constant_values=PADDING_LABEL)
        boxes = ops.pad(boxes, [[0, 0], [0, 1], [0, 0]])
        objects = ops.cast(predictions["objects"], "int32")
        of_pairs = ops.take_along_axis(labels, objects, axis=1)
        queries = ops.where(of_pairs[:, None] >= 0, ops.cast(predictions["queries"], "int32"), -1)
        num_pairs = ops.sum(ops.cast(queries[:, 0] >= 0, "float32"))
        num_pairs = ops.maximum(sum_over_replicas(num_pairs), 1.0)
        return Pairs(queries, of_pairs, ops.take_along_axis(boxes, objects[..., None], axis=1), num_pairs)

    def _losses_of_sets(
        self, sets: Mapping[str, PredictionSet], pairs: Mapping[str, Pairs], targets: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Return the losses of each set by its name: by theirs, `(layers,)` each."""
        losses = {}
        for name, one in sets.items():
            own = self._class_losses(one, pairs[name]) | box_losses(one, pairs[name])
            own |= self._further_losses(one.predictions, pairs[name], targets, one.groups)
            losses[name] = _means(own, one.groups)
        return losses

    def _class_losses(self, one: PredictionSet, pairs: Pairs) -> dict[str, Any]:
        """Return `loss_ce` of each layer of a set."""
        num_classes = one.logits.shape[-1] - self.has_no_object_class
        # A query is matched at most once, so that a sum over objects picks one; −1 is nobody's query.
        is_match = ops.one_hot(pairs.queries, ops.shape(one.logits)[2], dtype="int32")
        classes = num_classes + ops.sum(is_match * (pairs.labels - num_classes)[:, None, :, None], axis=2)
        weighting = Weighting(**{name: getattr(self, name) for name in Weighting._fields})
        if weighting.class_weights is not None and len(weighting.class_weights) != num_classes:
            weighting = weighting._replace(class_weights=None)  # of a set with classes of its own
        classification = classification_named(self.classification)
        quality = {"quality": _quality(one, pairs)} if classification.wants_quality else {}
        return {"loss_ce": classification.loss(one.logits, classes, pairs.count, weighting, **quality)}

    def _losses_of_masks(self, pred_masks: Any, masks: Any, is_pair: Any, num_boxes: Any) -> dict[str, Any]:
        """Return `loss_mask` and `loss_dice` of the objects' masks, of the last layer."""
        return mask_losses(pred_masks, masks, is_pair, num_boxes)

    def _weighted(self, losses: Mapping[str, Any]) -> Any:
        """Return the sum of losses of all layers, each with its coefficient."""
        return ops.sum(sum(self._coefficients[name] * of_layers for name, of_layers in losses.items()))

    @property
    def _coefficients(self) -> dict[str, float]:
        """The weights of the losses in the total, by name."""
        return {
            "loss_ce": self.class_loss_coefficient,
            "loss_bbox": self.bbox_loss_coefficient,
            "loss_giou": self.giou_loss_coefficient,
            "loss_mask": self.mask_loss_coefficient,
            "loss_dice": self.dice_loss_coefficient,
        }

    def _cardinality_error(self, logits: Any, num_objects: Any) -> Any:
        """Return the mean difference between the numbers of predicted and true objects: a figure, not a loss."""
        is_object = classification_named(self.classification).is_object(logits)
        predicted = ops.sum(ops.cast(is_object, "float32"), axis=-1)
        return ops.mean(ops.abs(predicted - num_objects)) / number_of_replicas()

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.classification, Classification):
            fields["classification"] = keras.saving.serialize_keras_object(self.classification)
        return fields

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SetCriterion:
        """Return the criterion that `get_config` described."""
        if isinstance(config.get("classification"), Mapping):
            config = config | {"classification": keras.saving.deserialize_keras_object(config["classification"])}
        return cls(**config)


def _all_layers(outputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Stack the outputs of all decoder layers, the last one last: `(batch, layers, queries, …)`."""
    stacked = []
    for last, earlier in (("logits", "aux_logits"), ("pred_boxes", "aux_boxes")):
        # An index of None would be copied on the way back.
        layers = ops.expand_dims(ops.cast(outputs[last], "float32"), 1)
        if earlier in outputs:
            layers = ops.concatenate([ops.cast(outputs[earlier], "float32"), layers], axis=1)
        stacked.append(layers)
    return stacked[0], stacked[1]


def _paired_masks(pred_masks: Any, queries: Any) -> Any:
    """Return the masks of the objects' queries, `(batch, objects, h, w)`; anything where there is no query."""
    queries = ops.maximum(queries, 0)
    return pred_masks(queries) if callable(pred_masks) else ops.take_along_axis(pred_masks, queries[..., None, None], 1)


def true_masks(targets: Mapping[str, Any]) -> Any:
    """Return the targets' masks.

    Raises:
        ValueError: there are none, or they are not masks of the targets' objects.
    """
    labels = targets["labels"]
    if "masks" not in targets:
        raise ValueError(
            "the model predicts masks, and the targets have none: read the data with masks=True, or train a detector"
        )
    masks = ops.convert_to_tensor(targets["masks"])
    sides = zip(masks.shape[:2], labels.shape, strict=False)
    if len(masks.shape) != 4 or any(a is not None and b is not None and a != b for a, b in sides):
        raise ValueError(
            f"targets' masks {tuple(masks.shape)} must be (batch, objects, height, width), of the objects of labels "
            f"{tuple(labels.shape)}"
        )
    return masks


def _of_groups(x: Any, groups: int) -> Any:
    """Return predictions `(batch, layers, groups · queries, …)` as `(batch, layers · groups, queries, …)`."""
    if groups == 1:
        return x
    batch, depth, queries, channels = ops.shape(x)
    return ops.reshape(x, (batch, depth * groups, queries // groups, channels))


def _at_least_one(objects: Any, groups: int) -> Any:
    """Return the objects of a batch as each group is told: together the groups have at least one."""
    return ops.maximum(objects * groups, 1.0) / groups


def _means(losses: Mapping[str, Any], groups: int) -> dict[str, Any]:
    """Return losses `(layers · groups,)` as means over the groups, `(layers,)`."""
    return {name: ops.mean(ops.reshape(values, (-1, groups)), axis=1) for name, values in losses.items()}


def _prediction_set(predictions: Mapping[str, Any]) -> PredictionSet:
    """Return what is predicted as the losses take it: in float32, group by group."""
    logits, boxes = (ops.cast(predictions[name], "float32") for name in ("logits", "pred_boxes"))
    if "query_mask" in predictions:  # a probability of 0 is right, and no gradient
        logits = ops.where(predictions["query_mask"][:, None], logits, NEVER)
    groups = int(predictions.get("groups", 1))
    return PredictionSet(_of_groups(logits, groups), _of_groups(boxes, groups), groups, predictions)


def _quality(one: PredictionSet, pairs: Pairs) -> Any:
    """Return the IoU of each query's box and its object's, `(batch, layers · groups, queries)`, without a gradient.

    It is 0 where a query has no object.
    """
    paired = ops.stop_gradient(_paired_boxes(one.boxes, pairs.queries))
    is_match = ops.one_hot(pairs.queries, ops.shape(one.boxes)[2], dtype="int32")
    of_pairs = iou(cxcywh_to_xyxy(paired), cxcywh_to_xyxy(pairs.boxes[:, None]))
    return ops.sum(ops.cast(is_match, of_pairs.dtype) * of_pairs[..., None], axis=2)


def box_losses(one: PredictionSet, pairs: Pairs) -> dict[str, Any]:
    """Return the L1 and GIoU losses of the pairs in each layer, `(layers · groups,)` each."""
    is_pair = ops.cast(pairs.queries >= 0, "float32")
    paired, true = _paired_boxes(one.boxes, pairs.queries), pairs.boxes[:, None]
    l1 = ops.sum(ops.abs(paired - true), axis=-1)
    giou = generalized_iou(cxcywh_to_xyxy(with_sides(paired)), cxcywh_to_xyxy(true))
    return {
        "loss_bbox": ops.sum(is_pair * l1, axis=(0, 2)) / pairs.count,
        "loss_giou": ops.sum(is_pair * (1.0 - giou), axis=(0, 2)) / pairs.count,
    }


def _paired_boxes(boxes: Any, queries: Any) -> Any:
    """Return the boxes of pairs, `(batch, layers · groups, pairs, 4)`; anything where there is no query."""
    return ops.take_along_axis(boxes, ops.maximum(queries, 0)[..., None], axis=2)
