"""The matching: its costs against NumPy and against transformers' matcher, its pairs against scipy."""

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from tfdetr_keras.matching.matcher import match, matching_cost

LAYERS, QUERIES, OBJECTS, CLASSES = 2, 5, 3, 4
WEIGHTS = {"cost_class": 1.5, "cost_bbox": 4.0, "cost_giou": 2.5}


def problem(seed, queries=QUERIES):
    """Outputs of two layers for three images with 3, 1 and no objects; padding rows hold rubbish boxes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (3, OBJECTS)).astype(np.int32)
    boxes = rng.uniform(0.1, 0.9, (3, OBJECTS, 4)).astype(np.float32)
    labels[1, [0, 2]] = labels[2] = -1
    boxes[labels < 0] = 100
    return {
        "logits": rng.normal(scale=2, size=(3, LAYERS, queries, CLASSES + 1)).astype(np.float32),
        "pred_boxes": rng.uniform(0.1, 0.9, (3, LAYERS, queries, 4)).astype(np.float32),
        "labels": labels,
        "boxes": boxes,
    }


def numpy_cost(logits, pred_boxes, label, box, cost_class, cost_bbox, cost_giou):
    """One image, one layer: `(queries,)` costs of one object, in float64 and term by term."""
    logits, pred_boxes, box = (np.asarray(array, np.float64) for array in (logits, pred_boxes, box))
    exponentials = np.exp(logits)
    probability = exponentials[:, label] / exponentials.sum(-1)
    x1, y1, x2, y2 = (pred_boxes @ CORNERS).T
    left, top, right, bottom = box @ CORNERS
    width = np.minimum(x2, right) - np.maximum(x1, left)
    height = np.minimum(y2, bottom) - np.maximum(y1, top)
    intersection = np.clip(width, 0, None) * np.clip(height, 0, None)
    union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - intersection
    hull = (np.maximum(x2, right) - np.minimum(x1, left)) * (np.maximum(y2, bottom) - np.minimum(y1, top))
    giou = intersection / union - (hull - union) / hull
    return cost_bbox * np.abs(pred_boxes - box).sum(-1) - cost_class * probability - cost_giou * giou


# cxcywh @ CORNERS = xyxy
CORNERS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]])


def objects_of(example):
    """(image, row) of each object that is not padding."""
    return np.argwhere(example["labels"] >= 0).tolist()


def test_cost_is_the_papers():
    example = problem(seed=0)
    cost = matching_cost(**example, **WEIGHTS).numpy()
    assert cost.shape == (3, LAYERS, OBJECTS, QUERIES)
    for image, row in objects_of(example):
        label, box = example["labels"][image, row], example["boxes"][image, row]
        for layer in range(LAYERS):
            outputs = example["logits"][image, layer], example["pred_boxes"][image, layer]
            expected = numpy_cost(*outputs, label, box, **WEIGHTS)
            np.testing.assert_allclose(cost[image, layer, row], expected, rtol=0, atol=5e-6)


def test_transformers_matcher_has_the_same_costs_and_finds_the_same_pairs(pytorch):
    example = problem(seed=1)
    cost = matching_cost(**example, **WEIGHTS).numpy()
    matched = np.asarray(match(**example, **WEIGHTS))
    for layer in range(LAYERS):
        outputs = [example[name][:, layer] for name in ("logits", "pred_boxes")]
        found = pytorch.call("losses:matching", *outputs, example, class_cost=1.5, bbox_cost=4.0, giou_cost=2.5)
        for image, (seen, (queries, rows)) in enumerate(found):
            is_object = example["labels"][image] >= 0
            np.testing.assert_allclose(cost[image, layer, is_object], seen, rtol=0, atol=5e-6)
            expected = np.full(is_object.sum(), -1)
            expected[rows] = queries
            np.testing.assert_array_equal(matched[image, layer, is_object], expected)


@pytest.mark.parametrize("queries", [QUERIES, 2], ids=["enough-queries", "more-objects-than-queries"])
def test_scipy_finds_the_same_pairs(queries):
    for seed in range(10):
        example = problem(seed, queries)
        matched = np.asarray(match(**example, **WEIGHTS))
        assert matched.dtype == np.int32
        expected = np.full((3, LAYERS, OBJECTS), -1)
        for image, labels in enumerate(example["labels"]):
            rows = np.flatnonzero(labels >= 0)
            for layer in range(LAYERS):
                outputs = example["logits"][image, layer], example["pred_boxes"][image, layer]
                cost = [numpy_cost(*outputs, labels[row], example["boxes"][image, row], **WEIGHTS) for row in rows]
                taken, columns = scipy.optimize.linear_sum_assignment(np.reshape(cost, (len(rows), queries)))
                expected[image, layer, rows[taken]] = columns
        np.testing.assert_array_equal(matched, expected)


@pytest.mark.parametrize("classification", ["focal", "iou_aware"])
def test_scipy_finds_the_same_pairs_where_probabilities_round_to_0_and_1(classification):
    """Of 1 − p + ε XLA makes (1 + ε) − p, whose logarithm was an infinite cost, and any pair the best."""
    example = problem(seed=4, queries=8)
    example["logits"] = np.where(np.abs(example["logits"]) > 2, 110 * np.sign(example["logits"]), example["logits"])
    assert (example["logits"] == 110).any()
    options = {**WEIGHTS, "classification": classification}
    double = {name: x.astype("float64") if x.dtype == "float32" else x for name, x in example.items()}
    cost, queries = matching_cost(**double, **options).numpy(), match(**example, **options).numpy()
    for image, layer in np.ndindex(3, LAYERS):
        rows = np.flatnonzero(example["labels"][image] >= 0)
        assert np.isfinite(cost[image, layer, rows]).all()
        expected = scipy.optimize.linear_sum_assignment(cost[image, layer, rows])[1]
        assert queries[image, layer, rows].tolist() == expected.tolist()


def test_padding_changes_nothing():
    """Neither what padding rows hold nor the order of the rows."""
    example = problem(seed=2)
    matched = np.asarray(match(**example))
    padding = example["labels"] < 0
    assert (matched.transpose(0, 2, 1)[padding] == -1).all()
    example["boxes"][padding] = np.nan
    np.testing.assert_array_equal(match(**example), matched)
    order = [2, 0, 1]
    example["boxes"], example["labels"] = example["boxes"][:, order], example["labels"][:, order]
    np.testing.assert_array_equal(match(**example), matched[..., order])


def test_no_gradient_flows():
    example = {name: tf.constant(value) for name, value in problem(seed=3).items()}
    watched = [example["logits"], example["pred_boxes"], example["boxes"]]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        total = tf.reduce_sum(tf.cast(match(**example), "float32"))
    assert tape.gradient(total, watched) == [None, None, None]


@pytest.mark.parametrize("objects", [0, 1, 8, 9])
def test_a_number_of_objects_unknown_to_the_graph(objects):
    rng = np.random.default_rng(objects)
    logits = rng.normal(size=(2, 3, 10, 5)).astype(np.float32)
    pred_boxes = rng.uniform(0.1, 0.9, (2, 3, 10, 4)).astype(np.float32)
    labels = rng.integers(0, 4, (2, objects)).astype(np.int32)
    boxes = rng.uniform(0.1, 0.9, (2, objects, 4)).astype(np.float32)
    unknown = [
        tf.TensorSpec((None, 3, 10, 5)),
        tf.TensorSpec((None, 3, 10, 4)),
        tf.TensorSpec((None, None), tf.int32),
        tf.TensorSpec((None, None, 4)),
    ]
    queries = tf.function(match, input_signature=unknown)(logits, pred_boxes, labels, boxes)
    np.testing.assert_array_equal(queries, match(logits, pred_boxes, labels, boxes))
