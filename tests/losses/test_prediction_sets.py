"""Prediction sets beside the decoder's: matched like any layer, or with pairs that are given, as denoising has them."""

import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras import SetCriterion
from tfdetr_keras.boxes import cxcywh_to_xyxy, generalized_iou

BATCH, QUERIES, CLASSES, LAYERS = 2, 6, 3, 2
TARGETS = {
    "labels": np.array([[0, 2, 1], [1, -1, -1]], np.int32),
    "boxes": np.random.default_rng(5).uniform(0.2, 0.8, (BATCH, 3, 4)).astype(np.float32),
}
# Two groups of queries, each of which answers for every object; the last pairs of the second image are padding's.
OBJECTS = np.array([[0, 1, 2, 0, 1, 2]] * BATCH)
PAIRS = np.tile(np.array([[4, 0, 2, 5, 1, 3]]), (BATCH, LAYERS, 1))


def predictions(seed, logits=CLASSES + 1, layers=LAYERS):
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(size=(BATCH, layers, QUERIES, logits)).astype(np.float32),
        "pred_boxes": rng.uniform(0.1, 0.9, (BATCH, layers, QUERIES, 4)).astype(np.float32),
    }


def outputs(**sets):
    decoder = predictions(0, sets.pop("logits", CLASSES + 1), layers=1)
    return {name: value[:, 0] for name, value in decoder.items()} | {"prediction_sets": sets}


def values(losses):
    return {name: float(value) for name, value in losses.items()}


def of_one(criterion, one, layer, targets=TARGETS):
    """The losses of one layer as though it were the decoder's last."""
    return values(criterion({name: one[name][:, layer] for name in ("logits", "pred_boxes")}, targets))


@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_a_set_is_matched_and_counted_like_a_layer_of_the_decoder(classification):
    criterion = SetCriterion(classification=classification)
    logits = CLASSES + (classification == "softmax")
    encoder = predictions(1, logits) | {"coefficient": 0.5}
    got = values(criterion(outputs(encoder=encoder, logits=logits), TARGETS))
    alone = values(criterion({**outputs(logits=logits), "prediction_sets": {}}, TARGETS))
    layers = [of_one(criterion, encoder, layer) for layer in range(LAYERS)]
    for layer, losses in enumerate(layers):
        for name in ("loss_ce", "loss_bbox", "loss_giou"):
            assert got[f"{name}_encoder_{layer}"] == pytest.approx(losses[name], rel=1e-5)
    assert got["loss"] == pytest.approx(alone["loss"] + 0.5 * sum(losses["loss"] for losses in layers), rel=1e-5)
    assert {name: got[name] for name in alone if name != "loss"} == {
        name: alone[name] for name in alone if name != "loss"
    }


def test_given_pairs_are_kept_and_divided_by_their_number():
    """Against plain loops: each object has two queries, whatever they predict; padding has none."""
    criterion, given = SetCriterion(eos_coefficient=0.1), predictions(2) | {"queries": PAIRS, "objects": OBJECTS}
    got = values(criterion(outputs(denoising=given), TARGETS))
    for layer in range(LAYERS):
        cross_entropy = weight = l1 = giou = count = 0.0
        for image in range(BATCH):
            classes = np.full(QUERIES, CLASSES)
            for query, target in zip(PAIRS[image, layer], OBJECTS[image], strict=True):
                if (label := TARGETS["labels"][image, target]) < 0:
                    continue
                classes[query], count = label, count + 1
                box, true = given["pred_boxes"][image, layer, query], TARGETS["boxes"][image, target]
                l1 += np.abs(box - true).sum()
                giou += 1 - float(generalized_iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(true)))
            for query, label in enumerate(classes):
                logits = given["logits"][image, layer, query].astype(np.float64)
                own = 0.1 if label == CLASSES else 1.0
                cross_entropy -= own * (logits[label] - np.log(np.exp(logits).sum()))
                weight += own
        assert count == 8
        assert got[f"loss_ce_denoising_{layer}"] == pytest.approx(cross_entropy / weight, rel=1e-5)
        assert got[f"loss_bbox_denoising_{layer}"] == pytest.approx(l1 / count, rel=1e-5)
        assert got[f"loss_giou_denoising_{layer}"] == pytest.approx(giou / count, rel=1e-4)


def test_a_set_may_have_fewer_classes_than_the_targets():
    """As an encoder's proposals, which know objects and no classes; weights of classes are then not theirs."""
    criterion = SetCriterion(classification="focal", class_weights=(1.0, 2.0, 3.0))
    proposals = predictions(3, logits=1) | {"labels": np.zeros_like(TARGETS["labels"])}
    got = values(criterion(outputs(encoder=proposals, logits=CLASSES), TARGETS))
    targets = TARGETS | {"labels": np.where(TARGETS["labels"] < 0, -1, 0)}
    expected = of_one(SetCriterion(classification="focal"), proposals, 1, targets)
    assert got["loss_ce_encoder_1"] == pytest.approx(expected["loss_ce"], rel=1e-5)
    assert got["loss_bbox_encoder_1"] == pytest.approx(expected["loss_bbox"], rel=1e-5)


def test_a_batch_without_objects_gives_numbers():
    targets = TARGETS | {"labels": np.full((BATCH, 3), -1, np.int32)}
    given = predictions(2) | {"queries": PAIRS, "objects": OBJECTS}
    got = values(SetCriterion()(outputs(encoder=predictions(1), denoising=given), targets))
    assert np.isfinite(list(got.values())).all()
    assert got["loss_bbox_denoising_0"] == got["loss_giou_encoder_0"] == 0


def test_gradients_reach_every_set_in_a_traced_step():
    sets = {"encoder": predictions(1), "denoising": predictions(2)}
    variables = {name: {key: tf.Variable(value) for key, value in one.items()} for name, one in sets.items()}
    given = {"queries": tf.constant(PAIRS), "objects": tf.constant(OBJECTS)}

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            named = tf.nest.map_structure(tf.identity, variables)
            named["denoising"].update(given)
            loss = SetCriterion()(outputs(**named), TARGETS)["loss"]
        return tape.gradient(loss, variables)

    for one in gradients().values():
        for gradient in one.values():
            assert np.abs(gradient).max() > 0
