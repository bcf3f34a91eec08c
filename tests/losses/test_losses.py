"""The set criterion: a worked example, an oracle of plain loops, and what must not matter or must not break."""

import json

import keras
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.matching.matcher import match

BATCH, QUERIES, OBJECTS, CLASSES = 3, 5, 3, 3
NO_OBJECT = CLASSES


def random_outputs(seed, layers=2, queries=QUERIES):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(BATCH, layers, queries, CLASSES + 1)).astype(np.float32)
    boxes = rng.uniform(0.1, 0.9, (BATCH, layers, queries, 4)).astype(np.float32)
    outputs = {"logits": logits[:, -1], "pred_boxes": boxes[:, -1]}
    return outputs if layers == 1 else {**outputs, "aux_logits": logits[:, :-1], "aux_boxes": boxes[:, :-1]}


def random_targets(seed):
    """Three objects in the first image, one in the second, none in the third."""
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0.2, 0.8, (BATCH, OBJECTS, 4)).astype(np.float32)
    return {"labels": np.array([[0, 2, 1], [1, -1, -1], [-1, -1, -1]], np.int32), "boxes": boxes}


def without_objects():
    return {"labels": np.full((BATCH, OBJECTS), -1), "boxes": np.zeros((BATCH, OBJECTS, 4), np.float32)}


def values(losses):
    return {name: float(value) for name, value in losses.items()}


def test_worked_example():
    """One object in the first image, none in the second; the numbers are worked out in the comments."""
    logits = np.zeros((2, 2, 5, 4), np.float32)
    boxes = np.full((2, 2, 5, 4), 0.1, np.float32)
    logits[0, 1, 3, 1] = np.log(5)  # last layer, query 3: p(class 1) = 5/8, all other queries p = 1/4
    boxes[0, 1, 3] = [0.5, 0.5, 0.4, 0.4]  # L1 = 0.2 + 0.2, GIoU = 0.04 / 0.16
    boxes[0, 0, 0] = [0.5, 0.5, 0.2, 0.2]  # earlier layer, query 0: the object itself
    outputs = {
        "logits": logits[:, 1],
        "pred_boxes": boxes[:, 1],
        "aux_logits": logits[:, :1],
        "aux_boxes": boxes[:, :1],
    }
    targets = {"labels": np.full((2, 3), -1), "boxes": np.zeros((2, 3, 4), np.float32)}
    targets["labels"][0, 1], targets["boxes"][0, 1] = 1, [0.5, 0.5, 0.2, 0.2]

    cross_entropy = (np.log(8 / 5) + 9 * 0.1 * np.log(4)) / (1 + 9 * 0.1)
    assert values(SetCriterion()(outputs, targets)) == pytest.approx(
        {
            "loss": cross_entropy + 5 * 0.4 + 2 * 0.75 + np.log(4),
            "loss_ce": cross_entropy,
            "loss_bbox": 0.4,
            "loss_giou": 0.75,
            # All ten queries name a class (a tie goes to the first): 5 − 1 and 5 − 0 too many.
            "cardinality_error": 4.5,
            "loss_ce_0": np.log(4),
            "loss_bbox_0": 0,
            "loss_giou_0": 0,
        },
        abs=1e-6,
    )


def oracle_giou(first, second):
    (x1, y1, x2, y2), (left, top, right, bottom) = (
        (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) for cx, cy, w, h in (first, second)
    )
    intersection = max(min(x2, right) - max(x1, left), 0) * max(min(y2, bottom) - max(y1, top), 0)
    union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - intersection
    hull = (max(x2, right) - min(x1, left)) * (max(y2, bottom) - min(y1, top))
    return intersection / union - (hull - union) / hull


def oracle(criterion, logits, boxes, targets):
    """loss_ce, loss_bbox, loss_giou of one layer, in float64 and one image after the other."""
    num_boxes = max(int((targets["labels"] >= 0).sum()), 1)
    weighted, weights, l1, giou_loss = 0.0, 0.0, 0.0, 0.0
    for image in range(BATCH):
        log_p = logits[image].astype(np.float64)
        log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
        objects = [
            (label, box.astype(np.float64))
            for label, box in zip(targets["labels"][image], targets["boxes"][image], strict=True)
            if label >= 0
        ]
        cost = np.zeros((len(objects), len(log_p)))
        for row, (label, box) in enumerate(objects):
            for query, predicted in enumerate(boxes[image].astype(np.float64)):
                cost[row, query] = (
                    criterion.cost_bbox * np.abs(predicted - box).sum()
                    - criterion.cost_class * np.exp(log_p[query, label])
                    - criterion.cost_giou * oracle_giou(predicted, box)
                )
        wanted = [NO_OBJECT] * len(log_p)
        for row, query in zip(*scipy.optimize.linear_sum_assignment(cost), strict=True):
            label, box = objects[row]
            predicted = boxes[image, query].astype(np.float64)
            wanted[query] = label
            l1 += np.abs(predicted - box).sum()
            giou_loss += 1 - oracle_giou(predicted, box)
        for query, label in enumerate(wanted):
            weight = [*(criterion.class_weights or (1.0,) * CLASSES), criterion.eos_coefficient][label]
            weighted -= weight * log_p[query, label]
            weights += weight
    return weighted / weights, l1 / num_boxes, giou_loss / num_boxes


CRITERIA = [
    SetCriterion(),
    SetCriterion(
        cost_class=2.0,
        cost_bbox=1.0,
        cost_giou=4.0,
        class_loss_coefficient=0.5,
        bbox_loss_coefficient=3.0,
        giou_loss_coefficient=1.5,
        eos_coefficient=0.4,
        class_weights=(2.0, 0.5, 1.5),
    ),
]


@pytest.mark.parametrize("queries", [QUERIES, 2], ids=["enough-queries", "more-objects-than-queries"])
@pytest.mark.parametrize("criterion", CRITERIA, ids=["paper", "other-coefficients"])
def test_an_oracle_of_plain_loops_gives_the_same_losses(criterion, queries):
    outputs, targets = random_outputs(seed=1, queries=queries), random_targets(seed=2)
    got, total = values(criterion(outputs, targets)), 0.0
    layers = {"": (outputs["logits"], outputs["pred_boxes"])}
    layers["_0"] = outputs["aux_logits"][:, 0], outputs["aux_boxes"][:, 0]
    for suffix, (logits, boxes) in layers.items():
        cross_entropy, l1, giou = oracle(criterion, logits, boxes, targets)
        assert got[f"loss_ce{suffix}"] == pytest.approx(cross_entropy, rel=2e-6)
        assert got[f"loss_bbox{suffix}"] == pytest.approx(l1, rel=2e-6)
        assert got[f"loss_giou{suffix}"] == pytest.approx(giou, rel=2e-6)
        total += criterion.class_loss_coefficient * cross_entropy
        total += criterion.bbox_loss_coefficient * l1 + criterion.giou_loss_coefficient * giou
    assert got["loss"] == pytest.approx(total, rel=2e-6)


def test_names_of_the_losses():
    last = {"loss", "loss_ce", "loss_bbox", "loss_giou", "cardinality_error"}
    assert set(SetCriterion()(random_outputs(0, layers=1), random_targets(0))) == last
    earlier = {f"{name}_{layer}" for name in ("loss_ce", "loss_bbox", "loss_giou") for layer in range(2)}
    assert set(SetCriterion()(random_outputs(0, layers=3), random_targets(0))) == last | earlier


def gradients(outputs, targets):
    outputs = {name: tf.constant(value) for name, value in outputs.items()}
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        losses = SetCriterion()(outputs, targets)
    return values(losses), tape.gradient(losses["loss"], outputs)


def test_a_batch_without_objects_trains_the_classes_alone():
    losses, gradient = gradients(random_outputs(seed=3), without_objects())
    assert losses["loss_bbox"] == losses["loss_giou"] == losses["loss_bbox_0"] == losses["loss_giou_0"] == 0
    assert losses["loss"] == pytest.approx(losses["loss_ce"] + losses["loss_ce_0"])
    assert losses["loss_ce"] > 0
    for name in ("pred_boxes", "aux_boxes"):
        np.testing.assert_array_equal(gradient[name], np.zeros_like(gradient[name]))
    for name in ("logits", "aux_logits"):
        assert np.isfinite(gradient[name]).all()
        assert np.abs(gradient[name]).min() > 0


def test_no_rows_at_all_are_no_objects():
    outputs = random_outputs(seed=3)
    nothing = {"labels": np.zeros((BATCH, 0), np.int32), "boxes": np.zeros((BATCH, 0, 4), np.float32)}
    assert values(SetCriterion()(outputs, nothing)) == values(SetCriterion()(outputs, without_objects()))


def test_degenerate_boxes_keep_the_gradient_finite():
    outputs, targets = random_outputs(seed=4), random_targets(seed=4)
    targets["boxes"][..., 2:] = 0
    outputs["pred_boxes"][...] = outputs["aux_boxes"][...] = targets["boxes"][0, 0]
    losses, gradient = gradients(outputs, targets)
    assert np.isfinite(list(losses.values())).all()
    assert all(np.isfinite(value).all() for value in gradient.values())


def test_low_precision_outputs_are_computed_in_float32():
    low = {name: tf.cast(value, "bfloat16") for name, value in random_outputs(seed=5).items()}
    high = {name: tf.cast(value, "float32") for name, value in low.items()}
    got, expected = (SetCriterion()(outputs, random_targets(seed=5)) for outputs in (low, high))
    assert {value.dtype for value in got.values()} == {tf.float32}
    assert values(got) == values(expected)


def test_order_and_padding_of_the_objects_do_not_matter():
    outputs, targets = random_outputs(seed=6), random_targets(seed=6)
    expected = values(SetCriterion()(outputs, targets))
    order = [2, 0, 1]
    moved = {name: value[:, order] for name, value in targets.items()}
    assert values(SetCriterion()(outputs, moved)) == pytest.approx(expected, rel=1e-6)

    more = {
        "labels": np.pad(moved["labels"], [[0, 0], [2, 3]], constant_values=-1),
        "boxes": np.pad(moved["boxes"], [[0, 0], [2, 3], [0, 0]], constant_values=7.0),
    }
    assert values(SetCriterion()(outputs, more)) == pytest.approx(expected, rel=1e-6)


def test_padding_rows_may_hold_anything():
    outputs, targets = random_outputs(seed=6), random_targets(seed=6)
    expected, expected_gradient = gradients(outputs, targets)
    targets["boxes"][targets["labels"] < 0] = np.nan
    losses, gradient = gradients(outputs, targets)
    assert losses == expected
    for name, value in expected_gradient.items():
        np.testing.assert_array_equal(gradient[name], value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_predictions_that_are_not_finite_end_the_matching(bad):
    """A diverged model must show as a loss that is not finite: the solver must neither hang nor hide it."""
    outputs = random_outputs(seed=7)
    outputs["pred_boxes"][...] = bad
    outputs["logits"][0, 0, 0] = bad
    losses = values(SetCriterion()(outputs, random_targets(seed=7)))
    assert not np.isfinite(losses["loss"])
    assert np.isfinite(losses["loss_bbox_0"])


def test_compiled_by_xla_it_gives_the_same():
    outputs, targets = random_outputs(seed=8), random_targets(seed=8)
    expected = values(SetCriterion()(outputs, targets))
    compiled = tf.function(SetCriterion(), jit_compile=True)
    assert values(compiled(outputs, targets)) == pytest.approx(expected, rel=2e-6)


def test_bad_targets_are_refused():
    targets = random_targets(seed=9)
    targets["labels"][1, 0] = NO_OBJECT
    with pytest.raises(ValueError, match="image 1 of the batch, row 0: label 3 is not a class"):
        SetCriterion()(random_outputs(seed=9), targets)


@pytest.mark.parametrize("criterion", CRITERIA, ids=["paper", "other-coefficients"])
def test_configuration_round_trip(criterion):
    assert SetCriterion.from_config(criterion.get_config()) == criterion
    through_json = json.loads(json.dumps(keras.saving.serialize_keras_object(criterion)))
    assert keras.saving.deserialize_keras_object(through_json) == criterion


@pytest.mark.parametrize("class_weights", [None, (2.0, 0.5, 0.0)], ids=["equal", "weighted"])
def test_torch_smooths_labels_alike(class_weights, pytorch):
    outputs, targets = random_outputs(seed=10, layers=1), random_targets(seed=10)
    criterion = SetCriterion(class_weights=class_weights, label_smoothing=0.2)
    queries = match(
        *(x[:, None] for x in (outputs["logits"], outputs["pred_boxes"])), targets["labels"], targets["boxes"]
    )
    wanted = np.full((BATCH, QUERIES), NO_OBJECT)
    for image, row in zip(*np.nonzero(targets["labels"] >= 0), strict=True):
        wanted[image, queries[image, 0, row]] = targets["labels"][image, row]
    weights = [*(class_weights or (1.0,) * CLASSES), criterion.eos_coefficient]
    expected = pytorch.call("losses:cross_entropy", outputs["logits"], wanted, weights, label_smoothing=0.2)
    assert values(criterion(outputs, targets))["loss_ce"] == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"class_weights": (2.0, 0.5, 0.0)}, {"focal_alpha": 0.6, "focal_gamma": 1.5}],
    ids=lambda options: ", ".join(options) or "plain",
)
def test_keras_has_the_same_focal_loss(options):
    outputs, targets = random_outputs(seed=11, layers=1), random_targets(seed=11)
    outputs["logits"] = outputs["logits"][..., :CLASSES]
    criterion = SetCriterion(classification="focal", **options)
    queries = match(
        *(x[:, None] for x in (outputs["logits"], outputs["pred_boxes"])),
        targets["labels"],
        targets["boxes"],
        classification="focal",
    )
    wanted = np.zeros((BATCH, QUERIES, CLASSES), np.float32)
    for image, row in zip(*np.nonzero(targets["labels"] >= 0), strict=True):
        wanted[image, queries[image, 0, row], targets["labels"][image, row]] = 1
    oracle = keras.losses.BinaryFocalCrossentropy(
        apply_class_balancing=True,
        alpha=criterion.focal_alpha,
        gamma=criterion.focal_gamma,
        from_logits=True,
        label_smoothing=criterion.label_smoothing,
        reduction=None,
    )
    # An axis of its own for the class, over which Keras then takes the mean.
    terms = np.asarray(oracle(wanted[..., None], outputs["logits"][..., None]))
    expected = (terms * (options.get("class_weights") or 1.0)).sum() / (targets["labels"] >= 0).sum()
    got = values(criterion(outputs, targets))
    assert got["loss_ce"] == pytest.approx(expected, rel=5e-6)
    probable = (outputs["logits"].max(-1) > 0).sum(-1)
    assert got["cardinality_error"] == pytest.approx(np.abs(probable - (targets["labels"] >= 0).sum(-1)).mean())


def test_focal_loss_and_gradient_stay_finite_where_probabilities_round_to_0_and_1():
    outputs, targets = random_outputs(seed=12, layers=1), random_targets(seed=12)
    outputs["logits"] = tf.constant(200 * np.sign(outputs["logits"][..., :CLASSES]))
    with tf.GradientTape() as tape:
        tape.watch(outputs["logits"])
        loss = SetCriterion(classification="focal")(outputs, targets)["loss"]
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, outputs["logits"])).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classification": "sigmoid"}, "classification must be one of .*'softmax', 'focal'.* not 'sigmoid'"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), not 1.0"),
        ({"class_weights": (1.0, -1.0, 1.0)}, "class_weights must be finite and not negative"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SetCriterion(**options)


def test_weights_for_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match="class_weights has 2 weights, but there are 3 classes"):
        SetCriterion(class_weights=(1.0, 2.0))(random_outputs(seed=0), random_targets(seed=0))
