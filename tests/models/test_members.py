"""Every member of the family as a Keras model: outputs, files, `detect`, `fit`, precision, XLA, folding."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from batches import random_targets
from members import MEMBERS, of_members
from ports import copy_of, weights_of

import tfdetr_keras as td
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.models.registry import members

OBJECTS = 5


def tokens_of(config):
    """How many tokens the batch's images have on all levels: of strides 8, 16 and 32, or one of a patch's."""
    strides = [patch] if (patch := getattr(config.backbone, "patch_size", None)) else (8, 16, 32)
    return sum((128 // stride) * (160 // stride) for stride in strides)


@pytest.fixture
def batch(member):
    """Inputs and targets of two images, the second of which has fewer objects; masks are the boxes."""
    inputs, targets = member.case.two_images(), random_targets((OBJECTS, 2), 6, rows=OBJECTS)
    targets["boxes"] = np.random.default_rng(0).uniform(0.2, 0.8, targets["boxes"].shape).astype(np.float32)
    height, width = inputs["pixel_values"].shape[1:3]
    rows, columns = ((np.arange(side) + 0.5) / side for side in (height, width))
    cx, cy, w, h = (targets["boxes"][..., place, None, None] for place in range(4))
    inside = (np.abs(rows[:, None] - cy) < h / 2) & (np.abs(columns - cx) < w / 2)
    return inputs, {**targets, "masks": inside & (targets["labels"] >= 0)[..., None, None]}


def targets_for(member, targets):
    return targets if member.case.has_masks else {name: targets[name] for name in ("labels", "boxes")}


def test_every_member_has_an_entry():
    assert members() == {name: member.kind for name, member in MEMBERS.items()}


# Members of which another one is made of the same parts, or of more.
ALIKE = ("TableTransformer", "ConditionalDETR", "RTDETRV2", "LWDETR", "RFDETR")


@of_members(slow=lambda member: member.name in ALIKE)
def test_outputs_are_of_every_query(member, port, batch):
    model, config = port(member.case), member.config
    outputs = {name: tuple(value.shape) for name, value in model(batch[0]).items()}
    assert outputs["logits"] == (2, config.num_queries, config.num_logits)
    assert outputs["pred_boxes"] == (2, config.num_queries, 4)
    assert outputs["aux_logits"][0] == outputs["aux_boxes"][0] == 2
    assert outputs["aux_boxes"][-2:] == (config.num_queries, 4)
    assert ("pred_masks" in outputs) == model.has_masks == member.case.has_masks
    if model.has_masks:
        assert outputs["pred_masks"] == (2, config.num_queries, 128 // 4, 160 // 4)


@of_members(slow=lambda member: member.name in ALIKE)
def test_outputs_of_earlier_layers_can_be_left_out(member, port, batch):
    model = member.new(auxiliary_outputs=False)
    model.set_weights(port(member.case).get_weights())
    outputs, whole = model(batch[0]), port(member.case)(batch[0])
    assert set(outputs) == {name for name in whole if not name.startswith("aux")}
    for name, value in outputs.items():
        np.testing.assert_allclose(value, whole[name], rtol=0, atol=1e-6)


@of_members(slow=lambda member: member.name in ALIKE)
def test_a_keras_file_holds_everything_and_detects_the_same(member, port, tmp_path):
    model = port(member.case)
    model.save(tmp_path / "model.keras")
    again = td.from_pretrained(tmp_path / "model.keras")
    assert (type(again), again.config, again.criterion) == (type(model), model.config, model.criterion)
    mine, theirs = weights_of(again), weights_of(model)
    assert mine.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(mine[path], value, err_msg=path)
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    records, prepared = td.data.image_files.records_of([image]), model.preprocessing
    [(inputs, targets)] = td.data.prepare(records, 1, size=(64, 96), preprocessing=prepared)
    outputs, sizes = model({name: value.numpy() for name, value in inputs.items()}), targets["orig_size"].numpy()
    [expected] = td.post_process(outputs, sizes, 0.1, model.config.classification)
    order = np.argsort(-expected["scores"], kind="stable")
    found = again.detect(image, (64, 96), 0.1)
    assert len(found) > 0
    np.testing.assert_allclose(found.scores, expected["scores"][order], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.labels, expected["labels"][order])
    np.testing.assert_allclose(found.boxes, np.clip(expected["boxes"][order], 0, [90, 60] * 2), rtol=0, atol=1e-3)


@of_members(slow=lambda member: member.name in (*ALIKE, "RFDETRForSegmentation"))  # by their own tests of a step
def test_two_steps_of_fit_move_every_weight_that_counts(member, port, batch):
    inputs, targets = batch[0], targets_for(member, batch[1])
    model = copy_of(port(member.case))
    before = weights_of(model)
    start = float(model.criterion(model(inputs), targets)["loss"])
    model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)  # traced, and compiled by XLA, in the slow tests
    twice = tf.data.Dataset.from_tensors((inputs, targets)).repeat(2)
    history = model.fit(twice, verbose=0).history
    assert set(history) == {"loss", *model.logged}
    assert all(np.isfinite(values).all() for values in history.values())
    after, trained = weights_of(model), {variable.path.split("/", 1)[1] for variable in model.trainable_weights}
    moved = {path for path, value in after.items() if not np.array_equal(value, before[path])}
    statistics = {path for path in after if path.rsplit("/", 1)[1] in ("moving_mean", "moving_variance")}
    assert moved <= trained | statistics
    # Others are moved by weight decay, if at all.
    assert {path for path in trained if member.case.has_effect(path)} <= moved
    assert float(model.criterion(model(inputs), targets)["loss"]) < start


@of_members(slow=lambda member: member.name in ALIKE)
def test_folding_batch_normalization_changes_no_output(member, port, batch):
    model = port(member.case)
    if not model.config.is_foldable:
        pytest.skip("there is none")
    folded = model.fold()
    assert type(folded) is type(model)
    assert not any("normalization" in path and path.startswith("backbone") for path in weights_of(folded))
    for name, value in model(batch[0]).items():
        np.testing.assert_allclose(folded(batch[0])[name], value, rtol=0, atol=1e-3 if "masks" in name else 1e-4)


@of_members(slow=lambda member: member.name != "DETR")
def test_xla_computes_the_same(member, port, batch):
    model = port(member.case)
    compiled = tf.function(model, jit_compile=True)(batch[0])
    for name, value in model(batch[0]).items():
        limit = member.case.limits.of_stage(name)
        np.testing.assert_allclose(compiled[name], value, rtol=0, atol=limit, err_msg=name)


@pytest.mark.slow
@of_members()
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_lowers_the_losses(member, batch, jit_compile):
    inputs, targets = batch[0], targets_for(member, batch[1])
    keras.utils.set_random_seed(0)
    backbone = member.config.backbone
    if backbone.batch_norm is not None:
        backbone = dataclasses.replace(backbone, batch_norm="trainable")
    model = member.new(frozen=(), backbone=backbone)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), jit_compile=jit_compile)
    history = model.fit(inputs, targets, batch_size=2, epochs=40, verbose=0).history
    assert set(history) == {"loss", *model.logged}
    for name in {"loss", "loss_mask", "loss_dice"} & set(history):
        assert history[name][-1] < 0.9 * history[name][0], (name, history[name])
    losses = model.evaluate(inputs, targets, batch_size=2, verbose=0, return_dict=True)
    assert losses["loss"] < 0.9 * history["loss"][0]


@pytest.mark.slow
@of_members()
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_outputs_in_mixed_precision_are_float32_and_near(member, batch, policy):
    inputs, targets = batch[0], targets_for(member, batch[1])
    keras.utils.set_random_seed(0)
    chooses = "proposals" in member.config.own_parts
    # Which tokens are chosen, and their order, is decided by less than such a precision tells: so all of them are.
    exact = member.new(num_queries=tokens_of(member.config)) if chooses else member.new()
    for name in {"query_embedding", "reference_embedding"} & set(exact.config.own_parts) if chooses else ():
        rows = getattr(exact, name).embeddings  # a query of its own for each place, which all tokens may come to
        rows.assign(np.broadcast_to(np.asarray(rows)[:1], rows.shape))
    model = copy_of(exact, dtype=policy)
    outputs = model(inputs)
    for name, value in exact(inputs).items():
        assert outputs[name].dtype == "float32", name
        found, expected = np.asarray(outputs[name]), np.asarray(value)
        if chooses:
            queries = 2 if name.startswith("aux") else 1
            found, expected = np.sort(found, axis=queries), np.sort(expected, axis=queries)
        assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max(), name
    model.compile(optimizer="sgd", run_eagerly=True)
    assert np.isfinite(model.train_on_batch(inputs, targets, return_dict=True)["loss"])


@pytest.mark.slow
@of_members()
def test_a_criterion_for_other_classes_is_refused(member, port, batch):
    model = copy_of(port(member.case))
    other = "focal" if model.config.classification == "softmax" else "softmax"
    model.criterion = SetCriterion(classification=other)
    model.compile(optimizer="sgd", run_eagerly=True)
    with pytest.raises(ValueError, match=f"but its criterion has classification='{other}'"):
        model.train_on_batch(batch[0], targets_for(member, batch[1]))


@of_members()
def test_the_configuration_is_plain_values_and_back(member):
    again = td.models.registry.config_of(td.models.registry.describe(member.config))
    assert again == member.config
    assert dataclasses.asdict(again) == again.to_dict()
