"""What LW-DETR has of its own: its sizes, padding, batch normalisation in the projector, two levels, its recipe."""

import numpy as np
import pytest
from small_group_detrs import pixels_of, small, targets_of

import tfdetr_keras as td
from tfdetr_keras.training.groups import learning_rate_multipliers
from tfdetr_keras.training.settings import Settings

pytestmark = pytest.mark.usefixtures("without_tracing")

# Millions, of the authors' README; without what batch normalisation has seen.
PARAMETERS = {"tiny": 12.1, "small": 14.6, "medium": 28.2, "large": 46.8, "xlarge": 118.0}


@pytest.mark.parametrize(
    "size", [size if size == "tiny" else pytest.param(size, marks=pytest.mark.slow) for size in PARAMETERS]
)
def test_presets_have_the_published_number_of_parameters(size):
    model = td.from_preset(f"lw-detr-{size}")
    count = sum(int(np.prod(weight.shape)) for weight in model.weights if "moving_" not in weight.path)
    digits = 0 if size == "xlarge" else 1
    assert round(count / 1e6, digits) == PARAMETERS[size]
    assert model.preprocessing == td.Preprocessing((640, 640), "stretch", multiple_of=64)


# ---- padding ----


def test_padding_is_accepted():
    """What is whole is as without a mask; boxes are relative to the image, so that padding stretches them."""
    model, pixels = small("LWDETR", num_queries=4), pixels_of()
    mask = np.ones((2, 64, 96), "int32")
    whole = model(pixels)
    for name, value in model({"pixel_values": pixels, "pixel_mask": mask}).items():
        np.testing.assert_allclose(value, whole[name], rtol=0, atol=1e-6, err_msg=name)
    mask[1, :, 48:] = 0
    padded = model.stages({"pixel_values": pixels, "pixel_mask": mask})
    np.testing.assert_allclose(padded["logits"][0], whole["logits"][0], rtol=0, atol=1e-6)
    model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)
    batch = {"pixel_values": pixels, "pixel_mask": mask}
    assert np.isfinite(model.train_on_batch(batch, targets_of(2, 1), return_dict=True)["loss"])


def test_anchors_of_a_padded_image_are_parts_of_it():
    """Of half as wide an image the centres of tokens lie twice as far to the right; in the padding there are none."""
    model, pixels = small("LWDETR", num_queries=8 * 12), pixels_of()
    for layer in (model.encoder_box_head, model.class_head):
        for weight in layer.weights:
            weight.assign(np.zeros(weight.shape))
    mask = np.ones((2, 64, 96), "int32")
    mask[1, :, 48:] = 0
    boxes = np.asarray(model.stages({"pixel_values": pixels, "pixel_mask": mask})["proposals.boxes"])
    columns = [np.unique(np.round(one[one[:, 2] > 0][:, 0], 4)) for one in boxes]
    np.testing.assert_allclose(columns[0], (np.arange(12) + 0.5) / 12, atol=1e-4)
    np.testing.assert_allclose(columns[1], (np.arange(6) + 0.5) / 6, atol=1e-4)
    assert (boxes[1][:, 2] == 0).sum() == 8 * 6  # those of the padding have no size, and are chosen last


def test_preprocessing_that_pads_needs_whole_windows():
    for images in (
        td.Preprocessing((64, 96), multiple_of=16),
        td.Preprocessing((60, 90), "fit", pad_to=(64, 96)),
        td.Preprocessing((60, 90), "stretch", multiple_of=16),
    ):
        assert small("LWDETR", preprocessing=images).preprocessing == images
    with pytest.raises(ValueError, match=r"preprocessing\.multiple_of=1, but the backbone takes .* multiples of 16"):
        small("LWDETR", preprocessing=td.Preprocessing((64, 96)))


# ---- the projector ----


def random_statistics(model):
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "/normalization/" in weight.path:
            low = 0.3 if weight.path.endswith(("gamma", "variance")) else -0.5
            weight.assign(rng.uniform(low, 1.5, weight.shape))
    return model


@pytest.mark.parametrize("scales", [(1.0,), (2.0, 0.5)])
def test_a_folded_model_answers_alike(scales):
    model = random_statistics(small("LWDETR", projector_scales=scales))
    folded = model.fold()
    assert folded.config.projector_norm == "folded"
    assert not any("/normalization/" in weight.path for weight in folded.weights)
    expected = model.stages(pixels_of())
    for name, found in folded.stages(pixels_of()).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=2e-5, err_msg=name)


def test_two_levels_are_finer_and_coarser():
    stages = small("LWDETR", projector_scales=(2.0, 0.5)).stages(pixels_of())
    assert stages["projector.level0"].shape == (2, 16, 24, 16)
    assert stages["projector.level1"].shape == (2, 4, 6, 16)


def test_frozen_statistics_stay():
    for norm, stay in (("frozen", True), ("trainable", False)):
        model = small("LWDETR", projector_norm=norm)
        before = {weight.path: np.asarray(weight) for weight in model.weights if "moving_" in weight.path}
        assert len(before) == 2 * 4  # of two convolutions around a pair
        model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)
        model.train_on_batch(pixels_of(), targets_of(2, 1))
        same = [np.array_equal(weight, before[weight.path]) for weight in model.weights if weight.path in before]
        assert all(same) if stay else not any(same), norm


# ---- the recipe ----


@pytest.mark.parametrize(
    ("size", "decay", "component", "weight_decay"),
    [("tiny", 0.8, 0.7, 1e-4), ("medium", 0.7, 0.7, 1e-4), ("large", 0.7, 0.5, 1e-4), ("xlarge", 0.75, 0.5, 1e-3)],
)
def test_learning_rates_are_the_authors(size, decay, component, weight_decay):
    """By the formula of their `util/get_param_dicts.py`, of a block: rate · decay^(layers − block) · component²."""
    model = small("LWDETR")
    recipe = td.LWDETR.presets[f"lw-detr-{size}"].recipe
    settings = Settings(**{name: value for name, value in recipe.items() if name != "multiscale"}).resolved(model)
    factors = learning_rate_multipliers(model, settings)
    layers = model.config.backbone.depth
    expected = {f"backbone/block{block}": 1.5 * decay ** (layers - block) * component**2 for block in range(layers)}
    expected |= {"backbone/embeddings": 1.5 * decay ** (layers + 1) * component**2, "decoder": component}
    assert factors == pytest.approx(expected)
    assert settings.weight_decay == weight_decay
    assert [640 * factor for factor in recipe["multiscale"]] == list(range(448, 897, 64))
