"""What LW-DETR and RF-DETR have in common: groups of queries, their loss, what is kept of them, what is refused."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from small_group_detrs import BACKBONES, FIELDS, KINDS, pixels_of, small, targets_of
from some_slow import some_slow

import tfdetr_keras as td
from tfdetr_keras.export.exportable import exportable
from tfdetr_keras.losses.criterion import SetCriterion

pytestmark = [pytest.mark.parametrize("kind", KINDS), pytest.mark.usefixtures("without_tracing")]


def as_if_trained(model):
    """Set all weights at random, so that no two rows of anything are alike."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        positive = weight.path.endswith(("gamma", "variance"))
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(0, 0.1, weight.shape))
    return model


def class_heads(model):
    """Return the decoder's class head, and those of all groups of what proposes."""
    return [model.class_head, *(model.encoder_class_head.of(group) for group in range(model.config.groups))]


# ---- groups ----


@pytest.mark.slow
def test_groups_do_not_see_each_other(kind):
    """In training each group answers as it would alone; in inference there is the first."""
    model, pixels = as_if_trained(small(kind, **no_statistics(kind))), pixels_of()
    every = model(pixels, training=True)
    assert every["logits"].shape == (2, 36, 4)
    assert every["aux_boxes"].shape == (2, 1, 36, 4)
    assert every["groups"] == every["prediction_sets"]["encoder"]["groups"] == 3
    alone = model(pixels)
    assert alone["logits"].shape == (2, 12, 4)
    assert "prediction_sets" not in alone
    for name in ("logits", "pred_boxes"):
        np.testing.assert_allclose(every[name][:, :12], alone[name], rtol=0, atol=2e-5, err_msg=name)
        assert np.abs(every[name][:, 12:24] - every[name][:, :12]).max() > 1e-3
    last = [model.query_embedding.embeddings, model.reference_embedding.embeddings]
    for weight in last:
        moved = np.asarray(weight)
        moved[24:] += 1
        weight.assign(moved)
    changed = model(pixels, training=True)["logits"]
    np.testing.assert_allclose(changed[:, :24], every["logits"][:, :24], rtol=0, atol=2e-5)
    assert np.abs(changed[:, 24:] - every["logits"][:, 24:]).max() > 1e-3


def no_statistics(kind):
    """Return fields of a model whose normalisation does not depend on the batch."""
    return {"projector_norm": "frozen"} if kind == "LWDETR" else {}


@pytest.mark.slow
def test_inference_does_without_the_other_groups(kind, tmp_path):
    """A folded model has the first group alone, and so has what is exported; it can still be trained, with one."""
    model, pixels = as_if_trained(small(kind)), pixels_of()
    alone = model.fold()
    assert (alone.config.groups, exportable(model).config.groups, model.config.groups) == (1, 1, 3)
    assert not [weight.path for weight in alone.weights if "group1" in weight.path]
    assert alone.query_embedding.embeddings.shape == (12, 16)
    for name, value in model(pixels).items():
        np.testing.assert_allclose(alone(pixels)[name], value, rtol=0, atol=3e-6, err_msg=name)  # measured: 3.1e-7
    alone.save(tmp_path / "alone.keras")
    again = td.load_model(tmp_path / "alone.keras")
    assert again.config == alone.config
    np.testing.assert_array_equal(again(pixels)["logits"], alone(pixels)["logits"])
    assert alone(pixels, training=True)["groups"] == 1
    with pytest.raises(ValueError, match="no groups of queries that inference does without, or it is folded already"):
        alone.fold()


def test_a_quantised_model_does_without_them_too(kind):
    model, pixels = as_if_trained(small(kind)), pixels_of()
    model.quantize("int8")
    alone = model.fold()
    assert alone.config.groups == 1
    np.testing.assert_allclose(alone(pixels)["logits"], model(pixels)["logits"], rtol=0, atol=1e-5)


def test_the_loss_of_groups_is_the_mean_of_theirs(kind):
    model, targets = as_if_trained(small(kind)), targets_of(3, 1)
    outputs = model(pixels_of(), training=True)
    found = model.criterion(outputs, targets)
    single = []
    for group in range(3):
        own = slice(12 * group, 12 * group + 12)
        part = {name: outputs[name][..., own, :] for name in ("logits", "pred_boxes", "aux_logits", "aux_boxes")}
        encoder = outputs["prediction_sets"]["encoder"]
        encoder = {name: encoder[name][..., own, :] for name in ("logits", "pred_boxes")}
        single.append(model.criterion({**part, "prediction_sets": {"encoder": encoder}}, targets))
    assert set(found) == set(single[0])
    for name, value in found.items():
        if name != "cardinality_error":
            assert float(value) == pytest.approx(np.mean([float(one[name]) for one in single]), rel=1e-5), name


def test_stages_have_names(kind):
    model, pixels = small(kind), pixels_of()
    stages = model.stages(pixels)
    assert set(stages) == {
        *("backbone.tap1", "backbone.tap2", "projector.level0", "proposals.logits"),
        *(
            "proposals.embeddings",
            "proposals.boxes",
            "references",
            "decoder.layer0",
            "decoder.layer1",
            "logits",
            "pred_boxes",
            "aux_logits",
            "aux_boxes",
        ),
    }
    assert stages["backbone.tap2"].shape == (2, 8, 12, 12)
    assert stages["projector.level0"].shape == (2, 8, 12, 16)
    assert stages["references"].shape == stages["proposals.boxes"].shape == (2, 12, 4)
    in_training = model.stages(pixels, training=True, targets=targets_of(1, 1))
    assert in_training["decoder.layer1"].shape == (2, 36, 16)


# ---- the loss ----


@pytest.mark.parametrize("bias", [110.0, -110.0])
def test_logits_of_any_size_have_a_finite_loss_and_gradient(kind, bias):
    """The form of the published formula that others compute has none from 17 on."""
    model, targets = small(kind), targets_of(3, 0)
    for head in class_heads(model):
        head.bias.assign(np.full(4, bias))
    with tf.GradientTape() as tape:
        outputs = model(pixels_of(), training=True)
        losses = model.criterion(outputs, targets)
    assert np.abs(np.asarray(outputs["logits"])).min() > 100
    assert all(np.isfinite(float(value)) for value in losses.values()), losses
    gradients = tape.gradient(losses["loss"], [one.value for one in model.trainable_variables])
    assert all(np.isfinite(tf.convert_to_tensor(one).numpy()).all() for one in gradients if one is not None)
    rows = 36 * 2 * 4 / 3 / 3  # logits of a group, for each of the three objects
    # Certain and wrong: each costs its distance from 0. Certain that nothing is there: the objects alone cost anything.
    expected = 110 * (rows - 1 + 0.5) if bias > 0 else 110 * 0.01
    assert float(losses["loss_ce"]) == pytest.approx(expected, rel=0.1 if bias > 0 else 0.02)


@pytest.mark.parametrize("counts", some_slow([(0, 0), (15, 0)], (0, 0)), ids=["no object", "more objects than queries"])
def test_a_step_is_finite(kind, counts):
    model = small(kind)
    model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)
    for rows in (None, 20):
        logs = model.train_on_batch(pixels_of(), targets_of(*counts, rows=rows), return_dict=True)
        assert all(np.isfinite(value) for value in logs.values()), logs
    assert all(np.isfinite(np.asarray(weight)).all() for weight in model.weights)


def test_a_step_without_a_row_of_targets(kind):
    model = small(kind)
    model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)
    nothing = {"labels": np.zeros((2, 0), "int32"), "boxes": np.zeros((2, 0, 4), "float32")}
    assert np.isfinite(model.train_on_batch(pixels_of(), nothing, return_dict=True)["loss"])


def test_all_groups_learn(kind):
    """What stays adds the same to all scores of a query; or to all pixels, which batch normalisation takes away."""
    model = as_if_trained(small(kind))
    before = {weight.path: np.asarray(weight) for weight in model.weights}
    model.compile(optimizer=keras.optimizers.SGD(0.01), run_eagerly=True)
    model.train_on_batch(pixels_of(), targets_of(3, 5))
    same = {weight.path for weight in model.trainable_weights if np.array_equal(weight, before[weight.path])}
    last = "block2/feed_forward/output/bias" if kind == "LWDETR" else "key/bias"
    assert all(path.endswith(("key/bias", last)) for path in same), same
    for weight in (model.query_embedding.embeddings, model.reference_embedding.embeddings):
        moved = (np.asarray(weight) != before[weight.path]).any(axis=1)
        assert moved.reshape(3, 12).any(axis=1).all()


@pytest.mark.slow
def test_recomputed_blocks_train_alike(kind):
    """With branches that are left out by chance, which must be the same ones the second time."""

    def run(recompute):
        model = small(kind, backbone=dataclasses.replace(BACKBONES[kind], drop_path=0.4))
        model.recompute = recompute
        assert all(block.recompute is recompute for block in model.backbone.blocks)
        model.compile(optimizer=td.AdamW(), run_eagerly=True)
        logs = [model.train_on_batch(pixels_of(), targets_of(3, 5), return_dict=True)["loss"] for _ in range(2)]
        return logs, [np.asarray(weight) for weight in model.weights]

    (losses, weights), (again, recomputed) = run(False), run(True)
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    for one, other in zip(weights, recomputed, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=2e-5)


# ---- what is kept for other classes and queries ----


@pytest.fixture
def saved(kind, tmp_path):
    model = as_if_trained(small(kind, id2label=["cat", "dog", "sky", "road"]))
    model.save(tmp_path / "model.keras")
    return model, tmp_path / "model.keras"


@pytest.mark.parametrize("queries", some_slow([5, 20], 20))
def test_queries_are_kept_in_each_group(kind, saved, queries):
    original, path = saved
    model = td.from_pretrained(path, num_queries=queries)
    assert model.config.num_queries == queries
    kept = min(queries, 12)
    for name in ("query_embedding", "reference_embedding"):
        mine, theirs = (np.asarray(getattr(one, name).embeddings) for one in (model, original))
        assert len(mine) == 3 * queries
        for group in range(3):
            np.testing.assert_array_equal(
                mine[group * queries : group * queries + kept], theirs[group * 12 : group * 12 + kept], err_msg=name
            )
    assert model(pixels_of(), training=True)["logits"].shape == (2, 3 * queries, 4)


def test_class_rows_are_kept_by_name_in_all_heads(kind, saved):
    original, path = saved
    model = td.from_pretrained(path, id2label=["road", "new", "cat"])
    count = 0
    for mine, theirs in zip(class_heads(model), class_heads(original), strict=True):
        np.testing.assert_array_equal(np.asarray(mine.kernel)[:, [0, 2]], np.asarray(theirs.kernel)[:, [3, 0]])
        np.testing.assert_array_equal(np.asarray(mine.bias)[[0, 2]], np.asarray(theirs.bias)[[3, 0]])
        assert 1 / (1 + np.exp(-float(mine.bias[1]))) == pytest.approx(0.01)  # as rare as before training
        count += 1
    assert count == 1 + 3


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 18}, "d_model=18 is not divisible by cross_attention_heads=4"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"self_attention_heads": 3}, "d_model=16 is not divisible by self_attention_heads=3"),
        ({"expansion": 2}, "expansion must be a number from 0 to 1"),
        ({"projector_scales": (3,)}, r"projector_scales must be some of \(2\.0, 1\.0, 0\.5\), not \(3,\)"),
        ({"projector_norm": "batch"}, "projector_norm='batch' must be one of"),
        ({"backbone": td.ResNetConfig()}, "backbone must be a"),
        (
            {"preprocessing": td.Preprocessing((60, 64), "stretch")},
            r"must be in multiples of 16 pixels, not \(60, 64\)",
        ),
    ],
)
def test_configurations_that_cannot_be(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        getattr(td, f"{kind}Config")(**{"backbone": BACKBONES[kind], **FIELDS, **changes})


def test_sizes_that_do_not_fit(kind):
    model = small(kind)
    with pytest.raises(ValueError, match=r"images of 100 x 96 pixels .* takes multiples of 16"):
        model(pixels_of(sides=(100, 96)))
    with pytest.raises(ValueError, match="4 positions on all levels, of which 12 queries cannot be chosen"):
        model(pixels_of(sides=(16, 16)))


def test_any_rectangle_of_whole_windows(kind):
    model = small(kind)
    for sides in ((32, 64), (96, 32), (128, 160)):
        assert model(pixels_of(sides=sides))["pred_boxes"].shape == (2, 12, 4)


def test_a_criterion_of_another_kind_is_refused(kind):
    model = small(kind)
    model.criterion = SetCriterion(classification="focal")
    model.compile(optimizer="sgd", run_eagerly=True)
    with pytest.raises(ValueError, match="but its criterion has classification='focal'"):
        model.train_on_batch(pixels_of(), targets_of(2, 1))


def test_the_default_follows_the_backbone(kind):
    """Images and recipe of a configuration that names neither; and of one with another backbone than its own."""
    config = getattr(td, f"{kind}Config")
    other = dataclasses.replace(BACKBONES[kind], patch_size=10)
    fields = {name: value for name, value in FIELDS.items() if name != "preprocessing"}
    assert config(other, **fields).preprocessing.multiple_of == 20
    assert config(dataclasses.asdict(other), **fields) == config(other, **fields)
    assert config(other, **fields).recipe["learning_rate"] == 1e-4
    with pytest.raises(ValueError, match=r"must be in multiples of 20 pixels, not \(64, 64\)"):
        config(other, **FIELDS)


def test_boxes_are_finite_and_may_leave_the_image(kind):
    model = as_if_trained(small(kind))
    boxes = np.asarray(model(pixels_of())["pred_boxes"])
    assert np.isfinite(boxes).all()
    assert (boxes[..., 2:] > 0).all()
    assert len(ops.shape(boxes)) == 3
