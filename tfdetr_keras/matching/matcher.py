"""The bipartite matching of predictions to objects (DETR, section 3.1, equation 1)."""

from __future__ import annotations

import functools
from typing import Any

from keras import ops

from tfdetr_keras.backend.compiler import compiled, one_of_few_sizes
from tfdetr_keras.boxes import cxcywh_to_xyxy, generalized_iou, with_sides
from tfdetr_keras.matching.assignment import linear_sum_assignment, padding_of
from tfdetr_keras.matching.classification import Classification, classification_named


def matching_cost(
    logits: Any,
    pred_boxes: Any,
    labels: Any,
    boxes: Any,
    cost_class: float = 1.0,
    cost_bbox: float = 5.0,
    cost_giou: float = 2.0,
    classification: str | Classification = "softmax",
) -> Any:
    """Return the cost of assigning each object to each query:

    cost = c(class) · cost_class + ‖b − b̂‖₁ · cost_bbox − GIoU(b, b̂) · cost_giou

    with c = −p, p the softmax probability. For sigmoid classification, c is the focal loss for the class being there
    less that for its absence: c = −α (1 − p)^γ log(p + ε) + (1 − α) p^γ log(1 − p + ε), α = 0.25, γ = 2, ε = 1e-8.

    Args:
        logits: `(batch, layers, queries, classes + 1)` float, last = no object; `(…, classes)` with `"focal"`.
        pred_boxes: `(batch, layers, queries, 4)` float, cxcywh.
        labels: `(batch, objects)` int; rows with a negative label are padding, and their costs are meaningless.
        boxes: `(batch, objects, 4)` float, cxcywh.
        cost_class: weight of the class term.
        cost_bbox: weight of the L1 distance of the boxes.
        cost_giou: weight of the generalised IoU.
        classification: `"softmax"`, `"focal"` or a `Classification`.

    Returns:
        `(batch, layers, objects, queries)` float: objects are the rows, since each of them gets one query.

    Source:
        DETR, section 3.1 ("Object detection set prediction loss") and appendix A.2; the class term is a probability
        rather than a log-probability. Focal: Lin et al. 2017, "Focal Loss for Dense Object Detection",
        arXiv:1708.02002, equation 5; Zhu et al. 2021, "Deformable DETR", arXiv:2010.04159, appendix A.4.
    """
    # Only the logits of the wanted classes are gathered; there is never a table of all costs or probabilities.
    classes = ops.maximum(ops.cast(labels, "int32"), 0)[:, None, None, :]
    classes = ops.broadcast_to(classes, (*ops.shape(logits)[:3], ops.shape(labels)[1]))
    wanted = ops.take_along_axis(logits, classes, axis=-1)
    class_term = ops.swapaxes(classification_named(classification).cost(logits, wanted), -1, -2)

    predicted, true = pred_boxes[:, :, None, :, :], boxes[:, None, :, None, :]
    l1_term = ops.sum(ops.abs(predicted - true), axis=-1)
    giou_term = generalized_iou(cxcywh_to_xyxy(with_sides(predicted)), cxcywh_to_xyxy(true))
    return cost_bbox * l1_term + cost_class * class_term - cost_giou * giou_term


def match(
    logits: Any,
    pred_boxes: Any,
    labels: Any,
    boxes: Any,
    cost_class: float = 1.0,
    cost_bbox: float = 5.0,
    cost_giou: float = 2.0,
    classification: str | Classification = "softmax",
    further_cost: Any = None,
) -> Any:
    """Find for each object the query that answers for it, at the least total cost per image and decoder layer.

    One cost tensor and one solve serve all layers and images; no gradient flows through either. Arguments are those of
    `matching_cost`, and `further_cost` `(batch, layers, objects, queries)`, added to it, that of masks for example.

    Returns:
        `(batch, layers, objects)` int32: the object's query, −1 for padding rows and, when an image has more objects
        than the model has queries, for the objects that got none.

    Source:
        DETR, section 3.1, equation 1.
    """
    logits, pred_boxes, boxes = (ops.stop_gradient(tensor) for tensor in (logits, pred_boxes, boxes))
    solve = _matcher(cost_class, cost_bbox, cost_giou, classification)
    objects, queries, is_query = labels.shape[1], logits.shape[2], None
    if queries is None:  # an encoder's tokens, as many as the images have positions
        queries = ops.shape(logits)[2]
        size = one_of_few_sizes(queries)
        logits, pred_boxes = (ops.pad(x, [[0, 0], [0, 0], [0, size - queries], [0, 0]]) for x in (logits, pred_boxes))
        is_query = ops.arange(size) < queries
    if objects is None:
        # Compiled anew for each number of objects: round it up, that there be few.
        objects = ops.shape(labels)[1]
        extra = padding_of(objects)
        labels = ops.pad(labels, [[0, 0], [0, extra]], constant_values=-1)
        boxes = ops.pad(boxes, [[0, 0], [0, extra], [0, 0]])
        if further_cost is not None:
            further_cost = ops.pad(further_cost, [[0, 0], [0, 0], [0, extra], [0, 0]])
    further_cost = None if further_cost is None else ops.stop_gradient(further_cost)
    return solve(logits, pred_boxes, labels, boxes, is_query, further_cost)[:, :, :objects]


@functools.cache
def _matcher(cost_class: float, cost_bbox: float, cost_giou: float, classification: str | Classification) -> Any:
    """Return costs and assignment as compiled functions: most of the time is spent on passes over the costs.

    Two, since as one the compiler works the costs out anew for each pass of the assignment.
    """

    @compiled
    def costs(logits: Any, pred_boxes: Any, labels: Any, boxes: Any, further_cost: Any) -> Any:
        cost = matching_cost(logits, pred_boxes, labels, boxes, cost_class, cost_bbox, cost_giou, classification)
        return cost if further_cost is None else cost + further_cost

    @compiled
    def assign(cost: Any, labels: Any, is_query: Any) -> Any:
        is_object = ops.broadcast_to(ops.greater_equal(labels, 0)[:, None, :], ops.shape(cost)[:-1])
        if is_query is not None:
            is_query = ops.broadcast_to(is_query, (*ops.shape(cost)[:-2], ops.shape(cost)[-1]))
        return linear_sum_assignment(cost, row_mask=is_object, column_mask=is_query)

    def solve(logits: Any, pred_boxes: Any, labels: Any, boxes: Any, is_query: Any, further_cost: Any) -> Any:
        return assign(costs(logits, pred_boxes, labels, boxes, further_cost), labels, is_query)

    return solve
