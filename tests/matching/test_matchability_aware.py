"""The matchability-aware loss beside recorded values of DEIM's code, and what it shares with the varifocal loss.

Recorded were `DEIMCriterion.loss_labels_mal` and its gradient in float64, of predictions and pairs in the same file.
Measured: the loss is the same to the last bit of float32, a gradient differs by 1.2e-7 of the largest.
"""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdetr_keras as td
from tfdetr_keras.matching.classification import Focal, MatchabilityAware, Softmax, Varifocal, classification_named

RECORDED = np.load(Path(__file__).parents[1] / "golden" / "matchability_aware.npz")
LOSS, GRADIENT = 2 * float(np.finfo(np.float32).eps), 1e-6


@pytest.mark.parametrize(("gamma", "alpha"), [(1.5, 1.0), (2.0, 0.6)])
def test_loss_and_gradient_are_the_authors(gamma, alpha):
    """With their pairs, as given ones, in which two boxes agree wholly and two do not touch, and very large logits."""
    criterion = td.SetCriterion(classification="matchability_aware", focal_gamma=gamma, focal_alpha=alpha)
    if gamma == 1.5:  # as published
        assert criterion == td.SetCriterion(classification="matchability_aware")
    targets = {name: RECORDED[name] for name in ("labels", "boxes")}
    logits, boxes = tf.constant(RECORDED["logits"]), RECORDED["pred_boxes"]
    objects = np.broadcast_to(np.arange(3), (2, 3))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        given = {"logits": logits[:, None], "pred_boxes": boxes[:, None]}
        given |= {"queries": RECORDED["queries"][:, None], "objects": objects}
        outputs = {"logits": RECORDED["logits"], "pred_boxes": boxes, "prediction_sets": {"given": given}}
        loss = criterion(outputs, targets)["loss_ce_given_0"]
    assert float(loss) == pytest.approx(float(RECORDED[f"loss_{gamma}_{alpha}"]), rel=LOSS)
    expected = RECORDED[f"gradient_{gamma}_{alpha}"]
    np.testing.assert_allclose(tape.gradient(loss, logits), expected, rtol=0, atol=GRADIENT * np.abs(expected).max())


def test_models_of_the_varifocal_classification_take_it_and_others_do_not():
    named = classification_named("matchability_aware")
    assert named == MatchabilityAware() != Varifocal()
    assert named.answers_as("varifocal")
    assert Varifocal().answers_as(MatchabilityAware())
    for other in (Focal(), Softmax(), "iou_aware"):
        assert not named.answers_as(other)
        assert not classification_named(other).answers_as(named)
    model = td.from_preset("rt-detr-tiny")
    inputs = {"pixel_values": np.random.default_rng(0).random((1, 64, 64, 3)).astype("float32")}
    targets = {"labels": np.array([[1]]), "boxes": np.float32([[[0.5, 0.5, 0.4, 0.4]]])}
    model.compile(optimizer="sgd", run_eagerly=True)
    expected = model.test_on_batch(inputs, targets, return_dict=True)
    model.criterion = td.SetCriterion(classification="matchability_aware")
    found = model.test_on_batch(inputs, targets, return_dict=True)
    assert found["loss_ce"] != expected["loss_ce"]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model.criterion))
    assert again == model.criterion
