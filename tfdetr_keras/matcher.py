"""The bipartite matching of predictions to objects (DETR, section 3.1, equation 1)."""

from __future__ import annotations

from typing import Any

from keras import ops

from tfdetr_keras.assignment import linear_sum_assignment
from tfdetr_keras.boxes import cxcywh_to_xyxy, generalized_iou


def matching_cost(
    logits: Any,
    pred_boxes: Any,
    labels: Any,
    boxes: Any,
    cost_class: float = 1.0,
    cost_bbox: float = 5.0,
    cost_giou: float = 2.0,
) -> Any:
    """Cost of giving each object to each query.

    cost = −p(class) · cost_class + ‖b − b̂‖₁ · cost_bbox − GIoU(b, b̂) · cost_giou

    Args:
        logits: `(batch, layers, queries, classes + 1)` float, last = no object.
        pred_boxes: `(batch, layers, queries, 4)` float, cxcywh.
        labels: `(batch, objects)` int; rows with a negative label are padding, their costs mean nothing.
        boxes: `(batch, objects, 4)` float, cxcywh.
        cost_class: weight of the class probability.
        cost_bbox: weight of the L1 distance of the boxes.
        cost_giou: weight of the generalised IoU.

    Returns:
        `(batch, layers, objects, queries)` float: objects as rows, as each of them is to get one query.

    Source:
        DETR, section 3.1 ("Object detection set prediction loss") and appendix A.2; the class term is a probability
        rather than a log-probability.
    """
    # p = exp(logit − logsumexp) needs the logits of the wanted classes only, never a table of all probabilities.
    classes = ops.maximum(ops.cast(labels, "int32"), 0)[:, None, None, :]
    shape = ops.shape(logits)
    classes = ops.broadcast_to(classes, (*shape[:3], ops.shape(labels)[1]))
    log_normalizer = ops.logsumexp(logits, axis=-1, keepdims=True)
    probability = ops.exp(ops.take_along_axis(logits, classes, axis=-1) - log_normalizer)
    class_term = ops.swapaxes(probability, -1, -2)

    predicted, true = pred_boxes[:, :, None, :, :], boxes[:, None, :, None, :]
    l1_term = ops.sum(ops.abs(predicted - true), axis=-1)
    giou_term = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true))
    return cost_bbox * l1_term - cost_class * class_term - cost_giou * giou_term


def match(
    logits: Any,
    pred_boxes: Any,
    labels: Any,
    boxes: Any,
    cost_class: float = 1.0,
    cost_bbox: float = 5.0,
    cost_giou: float = 2.0,
) -> Any:
    """Finds for each object the query that answers for it, at the least total cost per image and decoder layer.

    One cost tensor and one solve serve all layers and images; no gradient flows through either. Arguments are those of
    `matching_cost`.

    Returns:
        `(batch, layers, objects)` int32: the object's query, −1 for padding rows and, when an image has more objects
        than the model has queries, for the objects that got none.

    Source:
        DETR, section 3.1, equation 1.
    """
    logits, pred_boxes, boxes = (ops.stop_gradient(tensor) for tensor in (logits, pred_boxes, boxes))
    cost = matching_cost(logits, pred_boxes, labels, boxes, cost_class, cost_bbox, cost_giou)
    is_object = ops.broadcast_to(ops.greater_equal(labels, 0)[:, None, :], ops.shape(cost)[:-1])
    return linear_sum_assignment(cost, row_mask=is_object)
