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
from pairs import (
    CONDITIONAL,
    FACEBOOK_BOTTLENECK,
    SEGMENTATION,
    SMALL,
    TABLE_TRANSFORMER,
    facebook_pair,
    hugging_face_pair,
    padded_batch,
    random_targets,
)

from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.models import DETRForSegmentation

RAW = ("logits", "pred_boxes", "aux_logits", "aux_boxes")
LOSS, GRADIENT, DOUBLE_GRADIENT = 5e-6, 5e-4, 5e-6

# A smooth activation keeps the transformer's millions of hidden values out of that trouble.
WIDE = {"activation_function": "gelu", "num_queries": 20}
PAIRS = [
    pytest.param(hugging_face_pair, {"backbone": "thin", **SMALL}, id="post-norm"),
    pytest.param(
        hugging_face_pair, {"backbone": "thin", **SMALL, "position_embedding_type": "learned"}, id="learned-positions"
    ),
    pytest.param(hugging_face_pair, {"backbone": "thin", **SMALL, **TABLE_TRANSFORMER}, id="table-transformer"),
    pytest.param(hugging_face_pair, {"backbone": "thin", **SMALL | SEGMENTATION}, id="segmentation"),
    pytest.param(hugging_face_pair, {"backbone": "thin", **SMALL, **CONDITIONAL}, id="conditional"),
    pytest.param(facebook_pair, {**FACEBOOK_BOTTLENECK, "pre_norm": True}, id="facebook-pre-norm"),
    pytest.param(facebook_pair, {**FACEBOOK_BOTTLENECK, "dilated": True}, id="facebook-dc5"),
    pytest.param(hugging_face_pair, {"backbone": "resnet-18", **WIDE}, id="resnet-18"),
    pytest.param(hugging_face_pair, {"backbone": "resnet-50", **WIDE}, id="resnet-50", marks=pytest.mark.slow),
    pytest.param(hugging_face_pair, {"backbone": "resnet-101", **WIDE}, id="resnet-101", marks=pytest.mark.slow),
]


def unfreeze(pair):
    """Lets Keras train all convolutions, as PyTorch's side does."""
    for part in (pair.keras.backbone.stem, *pair.keras.backbone.stages):
        part.trainable = True


def in_double(pair, batch):
    """The pair and the batch in float64."""
    keras = type(pair.keras)(pair.keras.config, pair.keras.criterion, name=pair.keras.name, dtype="float64")
    keras.set_weights(pair.keras.get_weights())
    return dataclasses.replace(pair, keras=keras), batch | {"pixel_values": batch["pixel_values"].astype(np.float64)}


def is_focal(pair):
    return pair.keras.config.classification == "focal"


def torch_step(pair, batch, targets):
    """PyTorch's losses, and its gradients by Keras path and in Keras' layout."""
    losses, by_name = pair.pytorch.call("training:gradients", pair.reference, batch, targets, is_focal(pair))
    gradients, used = {}, set()
    for path, variable, name, layout in pair.torch_names():
        gradients[path] = layout.read(by_name[name], tuple(variable.shape))
        used.add(name)
    assert used == set(by_name)
    return losses, gradients


def keras_step(pair, batch, targets):
    """Keras' losses, and its gradients by path; without dropout, which a port of bare tensors has."""
    paths, variables = zip(*((path, variable.value) for path, variable, *_ in pair.torch_names()), strict=True)
    # transformers reads Conditional DETR's weight of the class loss, 2, and does not use it.
    criterion = dataclasses.replace(pair.keras.criterion, class_loss_coefficient=1.0)
    with tf.GradientTape() as tape:
        losses = criterion(pair.keras(batch, training=False), targets)
    gradients = tape.gradient(losses["loss"], variables)
    # The gradient of an embedding arrives as the rows that were looked up.
    return losses, {path: tf.convert_to_tensor(x).numpy() for path, x in zip(paths, gradients, strict=True)}


def assert_same_losses(got, expected, tolerance):
    assert set(got) <= set(expected)
    assert {"loss", "loss_ce", "loss_bbox", "loss_giou", "cardinality_error", "loss_giou_0"} <= set(got)
    assert {"loss_mask", "loss_dice"} & set(expected) <= set(got)
    for name, value in got.items():
        np.testing.assert_allclose(float(value), expected[name], rtol=tolerance, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(("make", "options"), PAIRS)
def test_losses_and_all_gradients(make, options, pytorch, tmp_path):
    """Three images: one with a few objects, one with none, one with more than there are queries."""
    pair = make(pytorch, tmp_path, **options)
    config, batch = pair.keras.config, padded_batch((128, 160), (97, 110), (64, 64))
    canvas = batch["pixel_mask"].shape[1:] if isinstance(pair.keras, DETRForSegmentation) else None
    in_float64 = sum(config.backbone.depths) > 8 or canvas is not None
    if in_float64:
        pair, batch = in_double(pair, batch)
    unfreeze(pair)
    targets = random_targets((5, 0, config.num_queries + 3), config.num_classes, rows=25, canvas=canvas)
    expected_losses, expected = torch_step(pair, batch, targets)
    losses, gradients = keras_step(pair, batch, targets)

    assert_same_losses(losses, expected_losses, LOSS)
    tolerance = DOUBLE_GRADIENT if in_float64 else GRADIENT
    size = np.linalg.norm([np.linalg.norm(x) for x in expected.values()])
    wrong = {}
    for path, gradient in gradients.items():
        norm = np.linalg.norm(expected[path])
        if not pair.has_effect(path):
            assert max(norm, np.linalg.norm(gradient)) < 1e-7 * size, path
            continue
        difference = np.linalg.norm(gradient - expected[path]) / norm
        if not difference <= tolerance:
            wrong[path] = difference
    assert not wrong


def test_a_port_trains_what_facebookresearch_trains(pytorch, tmp_path):
    """All but the statistics and affine parameters of batch norm, the stem and the first stage."""
    model = hugging_face_pair(pytorch, tmp_path, "thin", **SMALL).keras
    frozen = {variable.path.split("/", 1)[1] for variable in model.non_trainable_weights}
    every = {variable.path.split("/", 1)[1] for variable in model.weights}
    expected = re.compile(r"backbone/.*/normalization/.*|backbone/(stem|stage1)/.*")
    assert frozen == {path for path in every if expected.fullmatch(path)}
    assert {path for path in frozen if path.endswith("convolution/kernel")} == {
        "backbone/stem/convolution/kernel",
        *(f"backbone/stage1/block{block}/conv{k}/convolution/kernel" for block in (0, 1) for k in (1, 2)),
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
