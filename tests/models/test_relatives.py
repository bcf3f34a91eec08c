"""DETRForSegmentation and ConditionalDETR as objects: outputs, saving, precision, XLA, training, first weights."""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_model import CONFIG

import tfdetr_keras as td
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.models import (
    DETR,
    ConditionalDETR,
    ConditionalDETRConfig,
    DETRForSegmentation,
    SegmentationConfig,
    model_class,
)

FIELDS = {field.name: getattr(CONFIG, field.name) for field in dataclasses.fields(CONFIG)}
CONFIGS = {
    "segmentation": SegmentationConfig(**FIELDS | {"encoder_attention_heads": 8}),
    "conditional": ConditionalDETRConfig(**FIELDS),
}
KINDS = list(CONFIGS)


def make(kind, dtype=None, **changes):
    keras.utils.set_random_seed(0)
    config = dataclasses.replace(CONFIGS[kind], **changes)
    return model_class(config)(config, dtype=dtype)


@pytest.fixture(scope="module")
def models():
    return {kind: make(kind) for kind in KINDS}


@pytest.fixture
def batch(make_batch):
    """With a mask for each object, its box."""
    inputs, targets = make_batch(height=64, width=96)
    rows, columns = (np.arange(side) + 0.5 for side in (64, 96))
    cx, cy, w, h = (targets["boxes"][..., place, None, None] for place in range(4))
    inside = (np.abs(rows[:, None] / 64 - cy) < h / 2) & (np.abs(columns / 96 - cx) < w / 2)
    return inputs, {**targets, "masks": inside & (targets["labels"] >= 0)[..., None, None]}


def test_outputs_of_a_segmentation_model(models, batch):
    outputs = models["segmentation"](batch[0])
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "logits": (2, 5, 4),
        "pred_boxes": (2, 5, 4),
        "aux_logits": (2, 1, 5, 4),
        "aux_boxes": (2, 1, 5, 4),
        "pred_masks": (2, 5, 16, 24),
    }
    attention = models["segmentation"].stages(batch[0])["mask_attention"]
    np.testing.assert_allclose(np.sum(attention, axis=(2, 3, 4)), 1, atol=1e-5)
    padded = np.asarray(models["segmentation"].stages(batch[0])["mask"])[1] == 0
    assert padded.any()
    assert (np.asarray(attention)[1][:, padded] == 0).all()


def test_outputs_of_a_conditional_detr(models, batch):
    outputs = models["conditional"](batch[0])
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    assert (shapes["logits"], shapes["aux_logits"]) == ((2, 5, 3), (2, 1, 5, 3))


def test_a_conditional_detr_starts_with_rare_classes_and_boxes_at_its_reference_points(models, batch):
    model = models["conditional"]
    outputs = model(batch[0])
    bias = np.asarray(model.class_head.bias)
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), 0.01, rtol=1e-5)
    points = model.decoder._points(model.query_embedding(np.arange(5)))["points"]
    np.testing.assert_allclose(outputs["pred_boxes"][0, :, :2], points, atol=1e-5)
    np.testing.assert_allclose(outputs["pred_boxes"][0, :, 2:], 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(33, 65), (64, 40)])
def test_any_size(models, make_batch, kind, height, width):
    inputs, _ = make_batch(3, height, width)
    outputs = models[kind](inputs)
    assert all(np.isfinite(value).all() for value in outputs.values())
    if kind == "segmentation":
        assert outputs["pred_masks"].shape == (3, 5, -(-height // 4), -(-width // 4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_keras_file_holds_everything(models, batch, kind, tmp_path):
    model = models[kind]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert (type(again), again.config, again.criterion) == (type(model), model.config, model.criterion)
    for name, value in model(batch[0]).items():
        np.testing.assert_array_equal(again(batch[0])[name], value, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_compiled_by_xla(models, batch, kind):
    compiled = tf.function(models[kind], jit_compile=True)(batch[0])
    for name, value in models[kind](batch[0]).items():
        np.testing.assert_allclose(compiled[name], value, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["segmentation", "conditional"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_lowers_every_loss(batch, kind, jit_compile):
    model = make(kind, backbone=dataclasses.replace(CONFIG.backbone, batch_norm="trainable"))
    model.compile(optimizer=keras.optimizers.Adam(3e-3), jit_compile=jit_compile)
    history = model.fit(*batch, batch_size=2, epochs=12, verbose=0).history
    assert set(history) == {"loss", *model.logged}
    falling = {"loss", "loss_mask", "loss_dice"} & set(history)
    for name in falling:
        assert history[name][-1] < 0.9 * history[name][0], (name, history[name])
    losses = model.evaluate(*batch, batch_size=2, verbose=0, return_dict=True)
    assert losses["loss"] < 0.9 * history["loss"][0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.slow
def test_mixed_precision(models, batch, kind, policy):
    model = make(kind, dtype=policy)
    model.set_weights(models[kind].get_weights())
    outputs = model(batch[0])
    for name, value in models[kind](batch[0]).items():
        assert outputs[name].dtype == "float32", name
        assert np.abs(outputs[name] - value).max() < 0.1 * np.abs(value).max(), name
    model.compile(optimizer="sgd")
    assert np.isfinite(model.train_on_batch(*batch, return_dict=True)["loss"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_criterion_for_other_classes_is_refused(batch, kind):
    model = make(kind)
    other = {"segmentation": "focal", "conditional": "softmax"}[kind]
    model.criterion = SetCriterion(classification=other)
    model.compile(optimizer="sgd")
    with pytest.raises(ValueError, match=f"but its criterion has classification='{other}'"):
        model.train_on_batch(*batch)


@pytest.mark.slow
def test_masks_are_asked_for(batch):
    inputs, targets = batch
    model = make("segmentation")
    model.compile(optimizer="sgd")
    with pytest.raises(ValueError, match="the model predicts masks, and the targets have none"):
        model.fit(inputs, {name: targets[name] for name in ("labels", "boxes")}, verbose=0)


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


def test_only_a_detr_becomes_a_segmentation_model(models):
    with pytest.raises(ValueError, match="this is a ConditionalDETR, not a DETRForSegmentation"):
        DETRForSegmentation.from_detector(models["conditional"])


def test_auxiliary_outputs_can_be_left_out(models, batch):
    for kind in KINDS:
        model = make(kind, auxiliary_outputs=False)
        model.set_weights(models[kind].get_weights())
        outputs = model(batch[0])
        assert not {name for name in outputs if name.startswith("aux")}
        for name, value in outputs.items():
            np.testing.assert_allclose(value, models[kind](batch[0])[name], rtol=0, atol=1e-6)


def test_the_attention_of_a_conditional_detr_sums_to_one(models, batch):
    stages = models["conditional"].stages(batch[0], attention=True)
    for layer in range(2):
        np.testing.assert_allclose(np.sum(stages[f"decoder.layer{layer}.attention"], axis=-1), 1, atol=1e-5)
    assert isinstance(models["conditional"], ConditionalDETR)


def test_masks_of_matched_queries_alone_give_the_loss_and_gradient_of_all(models, batch):
    """What training computes, against the criterion on every query's mask."""
    model, (inputs, targets) = models["segmentation"], batch
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
    model, (inputs, targets) = make("segmentation"), batch
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


def test_no_block_of_detr_was_copied():
    """No ten lines in a row of what the relatives are stand in DETR's own files, but for blank lines and imports."""

    def blocks(path):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        code = [line for line in lines if line and not line.startswith(("import ", "from ", "#"))]
        return {tuple(code[place : place + 10]) for place in range(len(code) - 9)}

    folder = Path(td.models.__file__).parent
    relatives = ("conditional_detr", "detr_segmentation", "table_transformer")
    own = {name: blocks(folder / f"{name}.py") for name in relatives}
    for path in folder.glob("*.py"):
        for name, mine in own.items():
            assert path.stem == name or not mine & blocks(path), (name, path)
