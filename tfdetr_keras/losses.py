"""The set criterion: the losses of a matched set of predictions (DETR, section 3.1, equation 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from tfdetr_keras.boxes import cxcywh_to_xyxy, generalized_iou
from tfdetr_keras.matcher import match
from tfdetr_keras.targets import validate_batch


@keras.saving.register_keras_serializable(package="tfdetr_keras")
@dataclasses.dataclass(frozen=True)
class SetCriterion:
    """Matches predictions to objects in every decoder layer and sums the losses of the pairs.

    Per layer, with σ the matching and N the number of objects of the batch (at least 1):

    * `loss_ce` = Σ w(c)·(−log p(c)) / Σ w(c) over all queries, c = the matched class or "no object", w("no object") =
      `eos_coefficient`, other weights 1;
    * `loss_bbox` = Σ ‖b − b̂‖₁ / N and `loss_giou` = Σ (1 − GIoU(b, b̂)) / N over the matched pairs.

    Each decoder layer is matched and counted on its own (the paper's auxiliary losses). Everything is computed in
    float32, whatever the dtype of the outputs.

    Args:
        cost_class: weight of the class probability in the matching.
        cost_bbox: weight of the L1 box distance in the matching.
        cost_giou: weight of the generalised IoU in the matching.
        class_loss_coefficient: weight of `loss_ce` in the total.
        bbox_loss_coefficient: weight of `loss_bbox` in the total.
        giou_loss_coefficient: weight of `loss_giou` in the total.
        eos_coefficient: weight of the "no object" class within `loss_ce`.

    Source:
        DETR, section 3.1 equation 2, section 3.2 ("Auxiliary decoding losses"), appendix A.2 and A.4.
    """

    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    class_loss_coefficient: float = 1.0
    bbox_loss_coefficient: float = 5.0
    giou_loss_coefficient: float = 2.0
    eos_coefficient: float = 0.1

    def __call__(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, Any]:
        """Computes the losses of a batch.

        Args:
            outputs: `logits` `(batch, queries, classes + 1)`, last = no object, `pred_boxes` `(batch, queries, 4)`
                cxcywh; optionally `aux_logits` `(batch, layers − 1, queries, classes + 1)` and `aux_boxes`
                `(batch, layers − 1, queries, 4)` of the earlier decoder layers.
            targets: `labels` `(batch, objects)` int, −1 = padding row, `boxes` `(batch, objects, 4)` float, cxcywh in
                [0, 1] of the unpadded image. Further keys are not looked at.

        Returns:
            Scalars by name: `loss` (the weighted total), `loss_ce`, `loss_bbox`, `loss_giou` and `cardinality_error`
            of the last layer, and `loss_ce_{i}`, `loss_bbox_{i}`, `loss_giou_{i}` of the earlier layers i = 0, 1, …

        Raises:
            ValueError: targets that are malformed or hold labels or boxes out of range (on concrete tensors; inside a
                traced function the data pipeline checks them).
        """
        validate_batch(targets, num_classes=outputs["logits"].shape[-1] - 1)
        logits, pred_boxes = _all_layers(outputs)
        labels = ops.cast(ops.convert_to_tensor(targets["labels"]), "int32")
        boxes = ops.cast(ops.convert_to_tensor(targets["boxes"]), "float32")
        boxes = ops.where(labels[..., None] >= 0, boxes, 0.0)  # padding may hold anything, NaN too

        queries = match(logits, pred_boxes, labels, boxes, self.cost_class, self.cost_bbox, self.cost_giou)
        num_objects = ops.sum(ops.cast(labels >= 0, "float32"), axis=-1)
        layers = {
            "loss_ce": self._classification_loss(logits, labels, queries),
            **_box_losses(pred_boxes, boxes, queries, num_boxes=ops.maximum(ops.sum(num_objects), 1.0)),
        }
        total = ops.sum(
            self.class_loss_coefficient * layers["loss_ce"]
            + self.bbox_loss_coefficient * layers["loss_bbox"]
            + self.giou_loss_coefficient * layers["loss_giou"]
        )
        last = {name: values[-1] for name, values in layers.items()}
        earlier = {
            f"{name}_{layer}": values[layer] for layer in range(logits.shape[1] - 1) for name, values in layers.items()
        }
        return {"loss": total, **last, "cardinality_error": _cardinality_error(logits[:, -1], num_objects), **earlier}

    def _classification_loss(self, logits: Any, labels: Any, queries: Any) -> Any:
        """Weighted cross-entropy per decoder layer, `(layers,)`."""
        no_object = logits.shape[-1] - 1
        # A query is matched at most once, so the sum over objects picks that one label; −1 is nobody's query.
        is_match = ops.one_hot(queries, logits.shape[2], dtype="int32")
        classes = no_object + ops.sum(is_match * (labels - no_object)[:, None, :, None], axis=2)
        weights = ops.where(classes == no_object, self.eos_coefficient, 1.0)
        log_probability = ops.take_along_axis(ops.log_softmax(logits, axis=-1), classes[..., None], axis=-1)[..., 0]
        return -ops.sum(weights * log_probability, axis=(0, 2)) / ops.sum(weights, axis=(0, 2))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SetCriterion:
        """The criterion that `get_config` described."""
        return cls(**config)


def _all_layers(outputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Stacks the outputs of all decoder layers, the last one last: `(batch, layers, queries, …)`."""
    stacked = []
    for last, earlier in (("logits", "aux_logits"), ("pred_boxes", "aux_boxes")):
        layers = ops.cast(outputs[last], "float32")[:, None]
        if earlier in outputs:
            layers = ops.concatenate([ops.cast(outputs[earlier], "float32"), layers], axis=1)
        stacked.append(layers)
    return stacked[0], stacked[1]


def _box_losses(pred_boxes: Any, boxes: Any, queries: Any, num_boxes: Any) -> dict[str, Any]:
    """L1 and GIoU losses of the matched pairs per decoder layer, `(layers,)` each."""
    is_pair = ops.cast(queries >= 0, "float32")
    paired = ops.take_along_axis(pred_boxes, ops.maximum(queries, 0)[..., None], axis=2)
    true = boxes[:, None]
    l1 = ops.sum(ops.abs(paired - true), axis=-1)
    giou = generalized_iou(cxcywh_to_xyxy(paired), cxcywh_to_xyxy(true))
    return {
        "loss_bbox": ops.sum(is_pair * l1, axis=(0, 2)) / num_boxes,
        "loss_giou": ops.sum(is_pair * (1.0 - giou), axis=(0, 2)) / num_boxes,
    }


def _cardinality_error(logits: Any, num_objects: Any) -> Any:
    """Mean difference between the number of predicted and of true objects: a figure to watch, not a loss."""
    is_object = ops.argmax(logits, axis=-1) != logits.shape[-1] - 1
    return ops.mean(ops.abs(ops.sum(ops.cast(is_object, "float32"), axis=-1) - num_objects))
