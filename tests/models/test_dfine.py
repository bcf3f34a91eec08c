"""D-FINE beside what it shares with RT-DETR: boxes from distributions, its presets, and what cannot be."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from some_slow import some_slow

import tfdetr_keras as td
from tfdetr_keras.models.dfine import SIZES

SMALL = {
    "backbone": td.HGNetV2Config((8, 12), (8, 8, 12, 12), (16, 24, 32, 48), (1, 1, 1, 1), 2, True),
    "num_classes": 4,
    "num_queries": 12,
    "d_model": 16,
    "encoder_dim": 16,
    "encoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "expansion": 0.5,
    "fusion_blocks": 1,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "num_denoising": 6,
    "preprocessing": td.Preprocessing((96, 128), "stretch", multiple_of=32),
}


def small(**changes):
    keras.utils.set_random_seed(0)
    return td.DFINE(td.DFINEConfig(**SMALL | changes))


def pixels_of(batch=2, sides=(96, 128)):
    return np.random.default_rng(0).random((batch, *sides, 3), "float32")


def targets_of(*counts):
    rng, rows = np.random.default_rng(1), max(*counts, 1)
    labels = np.full((len(counts), rows), -1, "int32")
    for image, count in enumerate(counts):
        labels[image, :count] = rng.integers(0, 4, count)
    return {"labels": labels, "boxes": rng.uniform(0.2, 0.5, (len(counts), rows, 4)).astype("float32")}


def test_untrained_all_layers_give_the_box_of_the_first():
    """Their heads begin with zeros, with which all bins are alike, and so the sides stay where they are."""
    outputs = small()(pixels_of(), training=True)
    first = outputs["prediction_sets"]["pre"]["pred_boxes"][:, 0]
    for boxes in (outputs["pred_boxes"], outputs["aux_boxes"][:, 0], outputs["references"]):
        np.testing.assert_allclose(boxes, first, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(outputs["corners"], np.zeros_like(outputs["corners"]))


def test_corners_add_up_with_their_gradient_and_references_without():
    model = small()
    for weight in model.weights:
        if "box_head" in weight.path:
            weight.assign(keras.random.normal(weight.shape, stddev=0.3, seed=1))
    with tf.GradientTape() as tape:
        outputs = model(pixels_of(), training=True)
        last = tf.reduce_sum(outputs["corners"][:, -1])
    paths = ["box_head/layer0/layer2/kernel", "pre_box_head/layer2/kernel"]
    own = model.weights_by_path()
    of_first, of_pre = tape.gradient(last, [own[path].value for path in paths])
    assert np.abs(of_first).max() > 0
    assert of_pre is None
    assert (np.diff(outputs["corners"], axis=1) != 0).any()


def test_up_and_reg_scale_are_weights_that_nothing_trains(tmp_path):
    model = small(reg_scale=8.0)
    own = model.weights_by_path()
    assert [float(own[f"decoder/{name}"][0]) for name in ("up", "reg_scale")] == [0.5, 8.0]
    assert not any(variable.path.endswith(("/up", "/reg_scale")) for variable in model.trainable_variables)
    own["decoder/reg_scale"].assign([4.0])
    model.save(tmp_path / "model.keras")
    assert float(td.load_model(tmp_path / "model.keras").weights_by_path()["decoder/reg_scale"][0]) == 4.0


def test_as_wide_an_encoder_as_the_decoder_needs_no_projection():
    assert "decoder_projection" not in small().config.parts
    assert "decoder_projection" in small(encoder_dim=24).config.parts
    assert small(encoder_dim=24)(pixels_of())["logits"].shape == (2, 12, 4)


def test_two_levels():
    options = {"num_feature_levels": 2, "attended_levels": (1,), "decoder_points": 6}
    assert small(**options)(pixels_of())["pred_boxes"].shape == (2, 12, 4)


def test_fewer_layers_in_inference():
    model, pixels = small(), pixels_of()
    of_all = model(pixels)
    model.inference_layers = 2
    of_two = model(pixels)
    np.testing.assert_array_equal(of_two["logits"], of_all["aux_logits"][:, 1])
    np.testing.assert_array_equal(of_two["pred_boxes"], of_all["aux_boxes"][:, 1])
    assert model(pixels, training=True)["corners"].shape[1] == 3


@pytest.mark.parametrize("counts", some_slow([(0, 0), (15, 0)], (0, 0)), ids=["no object", "more objects than queries"])
def test_a_step_is_finite(counts):
    model = small()
    model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)
    logs = model.train_on_batch(pixels_of(), targets_of(*counts), return_dict=True)
    assert all(np.isfinite(value) for value in logs.values()), logs
    assert all(np.isfinite(np.asarray(weight)).all() for weight in model.weights)


def test_folded_it_answers_as_before():
    model, pixels = small(encoder_dim=24), pixels_of()
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "normalization/" in weight.path:
            low = 0.5 if weight.path.endswith(("gamma", "variance")) else -0.2
            weight.assign(rng.uniform(low, 1.5, weight.shape))
    folded = model.fold()
    assert not any("normalization/" in weight.path for weight in folded.weights)
    expected = model(pixels)
    for name in ("logits", "pred_boxes"):
        np.testing.assert_allclose(folded(pixels)[name], expected[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bins": 31}, "bins=31 must be even"),
        ({"bins": 2}, "bins must be a whole number of at least 4"),
        ({"reg_scale": 0}, "reg_scale must be a finite number above 0"),
        ({"expansion": 0.1}, "leaves no channels"),
        ({"decoder_points": (3, 6)}, "one for each of the 3 levels"),
        ({"backbone": td.ResNetConfig()}, "backbone must be a HGNetV2Config"),
    ],
)
def test_configurations_that_cannot_be(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        td.DFINEConfig(**SMALL | changes)


# Learning rate, factor of the backbone, epochs without strong augmentation, epochs before the average starts anew.
TABLE = {
    "nano": (8e-4, 0.5, 12, 148),
    "small": (2e-4, 0.5, 12, 120),
    "medium": (2e-4, 0.1, 12, 120),
    "large": (2.5e-4, 0.05, 8, 72),
    "xlarge": (2.5e-4, 0.01, 8, 72),
    "small-obj2coco": (2.5e-4, 0.5, 8, 56),
    "xlarge-obj2coco": (2.5e-4, 0.01, 6, 30),
}


@pytest.mark.parametrize("name", TABLE)
def test_recipes_are_those_of_the_authors_configurations(name):
    """Of Peterande/D-FINE at 4a1f73a8."""
    recipe = td.PRESETS[f"d-fine-{name}"].recipe
    names = ("learning_rate", "backbone_multiplier", "plain_epochs", "ema_restart_after")
    assert tuple(recipe[name] for name in names) == TABLE[name]
    assert recipe["warmup_steps"] == (0 if "obj2coco" in name else 500)
    if (factors := recipe["multiscale"]) is not False:
        assert factors.count(1.0) == {"small": 20, "medium": 6, "large": 4, "xlarge": 3, "small-obj2coco": 10}.get(
            name, 3
        )


@pytest.mark.parametrize("size", SIZES)
def test_presets(size):
    coco, objects365, both = (td.PRESETS[f"d-fine-{size}{data}"] for data in ("", "-obj365", "-obj2coco"))
    assert (coco.num_classes, objects365.num_classes, both.num_classes) == (80, 366, 80)
    assert dataclasses.replace(both, recipe=coco.recipe) == coco
    is_large = size in ("large", "xlarge")
    assert (coco.backbone.batch_norm, coco.frozen) == (("frozen", ("stem",)) if is_large else ("trainable", ()))
    assert coco.backbone.learnable_affine is not is_large


def test_the_tiny_one_has_no_more_parameters_than_rt_detr_s():
    counts = [td.from_preset(f"{name}-tiny").count_params() for name in ("d-fine", "rt-detr")]
    assert counts[0] <= counts[1]


def test_nano_has_as_many_parameters_as_published():
    """3,770,421 beside those of the backbone's batch normalisation, which transformers freezes."""
    model = td.from_preset("d-fine-nano")
    frozen = [v for v in model.trainable_variables if "backbone" in v.path and "normalization" in v.path]
    numbers = [v for v in model.weights if v.path.endswith(("/up", "/reg_scale"))]
    count = sum(int(np.prod(v.shape)) for v in [*model.trainable_variables, *numbers])
    assert count - sum(int(np.prod(v.shape)) for v in frozen) == 3_770_421
