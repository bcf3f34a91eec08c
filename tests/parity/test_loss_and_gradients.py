"""The set criterion, and the gradient of every trainable weight, against PyTorch's from the same weights and batch.

Measured on a CPU: losses differ by at most 8e-7 of their value, a weight's gradient by 7e-5 of its norm. In the deeper
networks rounding decides whether a rectified value next to zero lets the gradient by: PyTorch's own gradients in
float32 are off by 1e-3 of their norm there. So these run in float64 on both sides, where they differ by 6e-7;
positions, heads and losses stay in float32.
"""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf
from batches import random_targets
from members import DETR, of_cases
from ports import copy_of, torch_names

from tfdetr_keras.losses.criterion import SetCriterion

RAW = ("logits", "pred_boxes", "aux_logits", "aux_boxes")
LOSS = 5e-6  # of a criterion alone


def in_keras(case, names, gradients):
    """The gradients by Keras path and in Keras' layout, of `names` as `torch_names` gives them."""
    found = {path: layout.read(gradients[name], tuple(variable.shape)) for path, variable, name, layout in names}
    assert {name for *_, name, _ in names} == set(gradients)
    return found


def keras_step(model, criterion, batch, targets):
    """Keras' losses, and its gradients by path; without dropout, which a port of bare tensors has."""
    variables = {variable.path.split("/", 1)[1]: variable.value for variable in model.trainable_variables}
    with tf.GradientTape() as tape:
        losses = criterion(model(batch, training=False), targets)
    gradients = tape.gradient(losses["loss"], variables, unconnected_gradients="zero")
    # The gradient of an embedding arrives as the rows that were looked up.
    return losses, {path: tf.convert_to_tensor(gradient).numpy() for path, gradient in gradients.items()}


def assert_same_losses(got, expected, tolerance):
    assert set(got) <= set(expected)
    assert {"loss", "loss_ce", "loss_bbox", "loss_giou", "cardinality_error", "loss_giou_0"} <= set(got)
    assert {"loss_mask", "loss_dice"} & set(expected) <= set(got)
    for name, value in got.items():
        np.testing.assert_allclose(float(value), expected[name], rtol=tolerance, atol=1e-12, err_msg=name)


# Compiling takes these long, and what they have of their own has no weights, or is tested by a case that is not slow.
@of_cases(lambda case: case.has_gradients, slow=("LWDETR-two-levels", "RFDETR-global", "DeformableDETR-single-scale"))
def test_losses_and_all_gradients_are_the_reference_s(case, answers, port):
    """Of three images: one with a few objects, one with none, one with more than there are queries."""
    batch, targets = case.training_batch()
    model = copy_of(port(case), dtype="float64" if case.limits.in_double else None)
    if case.limits.in_double:
        batch = batch | {"pixel_values": batch["pixel_values"].astype(np.float64)}
    model.freeze(())  # PyTorch's side trains all convolutions
    names = list(torch_names(model, answers(case).arrays("state")))
    expected = in_keras(case, names, answers(case).arrays("gradients"))
    criterion = dataclasses.replace(model.criterion, **case.loss_there)
    losses, gradients = keras_step(model, criterion, batch, targets)

    assert_same_losses(losses, answers(case).arrays("losses"), case.limits.loss)
    assert gradients.keys() == expected.keys()
    size = np.linalg.norm([np.linalg.norm(x) for x in expected.values()])
    wrong = {}
    for path, gradient in gradients.items():
        norm = np.linalg.norm(expected[path])
        if not case.has_effect(path):
            assert max(norm, np.linalg.norm(gradient)) < 1e-7 * size, path
            continue
        difference = np.linalg.norm(gradient - expected[path]) / norm
        if not difference <= case.limits.gradient:
            wrong[path] = difference
    assert not wrong


def test_a_port_trains_what_facebookresearch_trains(port):
    """All but the statistics and affine parameters of batch norm, the stem and the first stage."""
    model = port(DETR)
    frozen = {variable.path.split("/", 1)[1] for variable in model.non_trainable_weights}
    every = {variable.path.split("/", 1)[1] for variable in model.weights}
    expected = re.compile(r"backbone/.*/normalization/.*|backbone/(stem|stage1)/.*")
    assert frozen == {path for path in every if expected.fullmatch(path)}
    assert {path for path in frozen if path.endswith("convolution/kernel")} == {
        "backbone/stem/convolution/kernel",
        *(f"backbone/stage1/block0/conv{k}/convolution/kernel" for k in (1, 2)),
    }


LAYERS, QUERIES, CLASSES, ROWS = 3, 12, 5, 20


def raw_batch(seed):
    """Random outputs and targets of four images: 0 to 20 objects for 12 queries, a fifth of the sides zero."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, ROWS + 1, 4) * (generator.random(4) < 0.8)
    if seed % 10 == 0:
        counts[:] = 0
    targets = random_targets(counts, CLASSES, ROWS, seed)
    targets["boxes"][..., 2:] *= generator.random((4, ROWS, 2)) > 0.2
    logits = generator.normal(0, 2, (4, LAYERS, QUERIES, CLASSES + 1)).astype(np.float32)
    boxes = 1 / (1 + np.exp(-generator.normal(0, 1.5, (4, LAYERS, QUERIES, 4)).astype(np.float32)))
    return dict(zip(RAW, (logits[:, -1], boxes[:, -1], logits[:, :-1], boxes[:, :-1]), strict=True)), targets


@pytest.mark.parametrize("seed", range(50))
def test_the_criterion_on_raw_outputs(seed, pytorch):
    arrays, targets = raw_batch(seed)
    expected, expected_gradients = pytorch.call("losses:of_arrays", arrays, targets)

    ours = {name: tf.Variable(array) for name, array in arrays.items()}
    with tf.GradientTape() as tape:
        losses = SetCriterion()(ours, targets)
    gradients = tape.gradient(losses["loss"], ours)

    assert_same_losses(losses, expected, LOSS)
    for name, want in expected_gradients.items():
        got = np.zeros(want.shape, np.float32) if gradients[name] is None else gradients[name].numpy()
        assert np.linalg.norm(got - want) <= LOSS * np.linalg.norm(want), name
