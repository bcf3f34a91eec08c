"""DETRForSegmentation: masks and their attention, training of the mask head alone, and masks of matched queries."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_model import CONFIG

from tfdetr_keras.models import DETR, ConditionalDETR, ConditionalDETRConfig, DETRForSegmentation, SegmentationConfig

pytestmark = pytest.mark.member(name="DETRForSegmentation")
FIELDS = {field.name: getattr(CONFIG, field.name) for field in dataclasses.fields(CONFIG)}


def make():
    keras.utils.set_random_seed(0)
    return DETRForSegmentation(SegmentationConfig(**FIELDS | {"encoder_attention_heads": 8}))


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def batch(make_batch):
    """With a mask for each object, its box."""
    inputs, targets = make_batch(height=64, width=96)
    rows, columns = (np.arange(side) + 0.5 for side in (64, 96))
    cx, cy, w, h = (targets["boxes"][..., place, None, None] for place in range(4))
    inside = (np.abs(rows[:, None] / 64 - cy) < h / 2) & (np.abs(columns / 96 - cx) < w / 2)
    return inputs, {**targets, "masks": inside & (targets["labels"] >= 0)[..., None, None]}


def test_outputs_of_a_segmentation_model(model, batch):
    outputs = model(batch[0])
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "logits": (2, 5, 4),
        "pred_boxes": (2, 5, 4),
        "aux_logits": (2, 1, 5, 4),
        "aux_boxes": (2, 1, 5, 4),
        "pred_masks": (2, 5, 16, 24),
    }
    attention = model.stages(batch[0])["mask_attention"]
    np.testing.assert_allclose(np.sum(attention, axis=(2, 3, 4)), 1, atol=1e-5)
    padded = np.asarray(model.stages(batch[0])["mask"])[1] == 0
    assert padded.any()
    assert (np.asarray(attention)[1][:, padded] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(33, 65), (64, 40)])
def test_masks_have_a_quarter_of_any_size(model, make_batch, height, width):
    inputs, _ = make_batch(3, height, width)
    outputs = model(inputs)
    assert all(np.isfinite(value).all() for value in outputs.values())
    assert outputs["pred_masks"].shape == (3, 5, -(-height // 4), -(-width // 4))


@pytest.mark.slow
def test_masks_are_asked_for(batch):
    inputs, targets = batch
    model = make()
    model.compile(optimizer="sgd")
    with pytest.raises(ValueError, match="the model predicts masks, and the targets have none"):
        model.fit(inputs, {name: targets[name] for name in ("labels", "boxes")}, verbose=0)


@pytest.mark.slow
def test_the_second_stage_trains_the_mask_head_alone(batch):
    keras.utils.set_random_seed(0)
    detector = DETR(dataclasses.replace(CONFIG, encoder_attention_heads=8))
    model = DETRForSegmentation.from_detector(detector)
    before = {weight.path: np.asarray(weight) for weight in model.weights}
    outputs = detector(batch[0])
    model.compile(optimizer="sgd")
    model.fit(*batch, batch_size=2, epochs=2, verbose=0)
    changed = {w.path.split("/")[1] for w in model.weights if not np.array_equal(np.asarray(w), before[w.path])}
    assert changed == {"mask_attention", "mask_head"}
    for name, value in outputs.items():
        np.testing.assert_array_equal(model(batch[0])[name], value)


def test_only_a_detr_becomes_a_segmentation_model():
    with pytest.raises(ValueError, match="this is a ConditionalDETR, not a DETRForSegmentation"):
        DETRForSegmentation.from_detector(ConditionalDETR(ConditionalDETRConfig(**FIELDS)))


def test_masks_of_matched_queries_alone_give_the_loss_and_gradient_of_all(model, batch):
    """What training computes, against the criterion on every query's mask."""
    inputs, targets = batch
    with tf.GradientTape() as tape:
        expected = model.criterion(model(inputs, training=False), targets)["loss"]
    expected_gradients = tape.gradient(expected, [v.value for v in model.trainable_variables])
    with tf.GradientTape() as tape:
        outputs = model(inputs, training=True)
        loss = model.compute_loss(inputs, targets, outputs)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for variable, *pair in zip(model.trainable_variables, gradients, expected_gradients, strict=True):
        mine, theirs = (tf.convert_to_tensor(gradient).numpy() for gradient in pair)
        limit = 1e-5 * max(1, np.abs(theirs).max())
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=limit, err_msg=variable.path)


def test_a_traced_step_leaves_the_masks_of_unmatched_queries_out(batch):
    """By the convolutions that its result needs: one mask head, as in inference, and not another for all queries."""
    model, (inputs, targets) = make(), batch
    inputs = {name: tf.constant(value) for name, value in inputs.items()}
    targets = {name: tf.constant(value) for name, value in targets.items()}

    def convolutions(function):
        graph = tf.function(function).get_concrete_function().graph
        names = [output.op.name for output in graph.outputs]
        needed = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), names)
        return sum(node.op == "Conv2D" for node in needed.node)

    def step():
        return model.compute_loss(inputs, targets, model(inputs, training=True))

    assert convolutions(step) == convolutions(lambda: model(inputs)["pred_masks"]) > 6
