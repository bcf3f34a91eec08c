"""What RF-DETR has of its own: its sizes, images without padding, the older base's unused block, its recipe."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_group_detrs import BACKBONES, FIELDS, pixels_of, small, targets_of

import tfdetr_keras as td
from tfdetr_keras.models.rf_detr import recipe_of
from tfdetr_keras.training.groups import learning_rate_multipliers
from tfdetr_keras.training.settings import Settings

pytestmark = pytest.mark.usefixtures("without_tracing")

# Millions, of the authors' README; of nano, to the last one, what their code counts.
PARAMETERS = {"nano": 30.5, "small": 32.1, "medium": 33.7, "large": 33.9, "base": 32.2}
SIDES = {"nano": 384, "small": 512, "medium": 576, "large": 704, "base": 560}
NANO, NANO_IN_INFERENCE = 30_467_298, 26_863_662


def parameters(model):
    return {weight.path.split("/", 1)[1]: int(np.prod(weight.shape)) for weight in model.weights}


@pytest.mark.parametrize(
    "size", [size if size == "nano" else pytest.param(size, marks=pytest.mark.slow) for size in PARAMETERS]
)
def test_presets_have_the_published_number_of_parameters(size):
    model = td.from_preset(f"rf-detr-{size}")
    counts = parameters(model)
    assert round(sum(counts.values()) / 1e6, 1) == PARAMETERS[size]
    side = SIDES[size]
    assert model.preprocessing == td.Preprocessing(
        (side, side), "stretch", antialias=False, multiple_of=56 if size == "base" else 32
    )
    if size == "nano":
        assert sum(counts.values()) == NANO
        of_training = sum(
            count * 12 // 13 if "_embedding/" in path else count
            for path, count in counts.items()
            if "_embedding/" in path or any(f"group{group}" in path for group in range(1, 13))
        )
        assert NANO - of_training == NANO_IN_INFERENCE


def test_padding_is_refused_by_name():
    model, pixels = small("RFDETR"), pixels_of()
    mask = np.ones((2, 64, 96), "int32")
    np.testing.assert_array_equal(
        model({"pixel_values": pixels, "pixel_mask": mask})["logits"], model(pixels)["logits"]
    )
    mask[1, :, 60:] = 0
    batch = {"pixel_values": pixels, "pixel_mask": mask}
    complaint = r"2304 pixels are padding, but RF-DETR knows no padding"
    with pytest.raises(ValueError, match=complaint):
        model(batch)
    model.compile(optimizer=td.AdamW(), run_eagerly=True)
    targets = targets_of(2, 1)
    for data in ({"x": batch, "y": targets}, {"x": tf.data.Dataset.from_tensors((batch, targets))}):
        with pytest.raises(ValueError, match=complaint):
            model.fit(**data, verbose=0)
    with pytest.raises(ValueError, match="RFDETR knows no padding, and the rule 'huggingface'"):
        td.RFDETRConfig(BACKBONES["RFDETR"], **FIELDS | {"preprocessing": td.Preprocessing((64, 64), multiple_of=16)})
    with pytest.raises(ValueError, match="RF-DETR knows no padding"):
        td.training.Settings(pad_to="buckets").preprocessing_of(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projector_scales": (2.0, 0.5)}, r"projector_scales=\(2\.0, 0\.5\), but an RF-DETR looks at one map"),
        ({"projector_norm": "trainable"}, "projector_norm='trainable' must be one of 'layer'"),
    ],
)
def test_what_has_no_reference_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        td.RFDETRConfig(BACKBONES["RFDETR"], **FIELDS | changes)


def test_there_is_no_batch_normalisation_to_fold():
    assert not small("RFDETR").config.is_foldable


def test_what_a_small_image_becomes_is_not_smoothed():
    """As the authors shrink them; an antialiased image is another one."""
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    preprocessing = td.RFDETRConfig(BACKBONES["RFDETR"]).preprocessing
    records = td.data.image_files.records_of([image])
    images = {
        antialias: next(
            iter(td.data.prepare(records, 1, preprocessing=dataclasses.replace(preprocessing, antialias=antialias)))
        )[0]["pixel_values"].numpy()
        for antialias in (False, True)
    }
    side = preprocessing.size[0]
    wanted = keras.ops.image.resize(image[None].astype("float32"), (side, side), "bilinear", antialias=False)
    wanted = (np.asarray(wanted) / 255 - preprocessing.mean) / preprocessing.std
    half_a_level = 0.5 / 255 / min(preprocessing.std)  # to which a record's image is rounded
    np.testing.assert_allclose(images[False], wanted, rtol=0, atol=1.01 * half_a_level)
    assert np.abs(images[True] - images[False]).max() > 0.3


def test_a_block_behind_the_last_tap_is_not_trained():
    """Of the older base, of which all files have it."""
    backbone = dataclasses.replace(BACKBONES["RFDETR"], taps=(1, 2))
    model = small("RFDETR", backbone=backbone)
    unused = {weight.path: np.asarray(weight) for weight in model.backbone.blocks[2].weights}
    assert len(unused) == 18
    assert not {weight.path for weight in model.trainable_weights} & unused.keys()
    model.compile(optimizer=td.AdamW(1e-2), run_eagerly=True)
    model.train_on_batch(pixels_of(), targets_of(2, 1))
    for weight in model.backbone.blocks[2].weights:
        np.testing.assert_array_equal(weight, unused[weight.path])
    model.freeze("")
    assert not {weight.path for weight in model.trainable_weights} & unused.keys()


# ---- the recipe ----


@pytest.mark.parametrize("taps", [(1, 3), (1, 2)], ids=["all blocks", "one unused"])
def test_learning_rates_are_the_authors(taps):
    """By their formula: rate · 0.8^(layers + 1 − layer) · 0.7² with layers = last tap + 1; the norm counts whole."""
    backbone = dataclasses.replace(BACKBONES["RFDETR"], taps=taps)
    model = td.RFDETR(td.RFDETRConfig(backbone, **FIELDS))
    settings = Settings().resolved(model)
    factors = learning_rate_multipliers(model, settings)
    layers, whole = taps[-1] + 1, 1.5 * 0.7**2
    expected = {f"backbone/block{block}": whole * 0.8 ** (layers + 1 - (block + 1)) for block in range(taps[-1])}
    expected |= {"backbone/embeddings": whole * 0.8 ** (layers + 1), "backbone/norm": whole, "decoder": 0.7}
    assert factors == pytest.approx(expected)
    assert (settings.ema_momentum, settings.ema_ramp_steps) == (0.993, 100)


def test_weights_that_do_not_decay_are_the_authors():
    """Of the backbone: whatever has "norm", "bias" or "embeddings" in their name; nothing else."""
    model = small("RFDETR")
    optimizer = td.AdamW(weight_decay_exclude=recipe_of(BACKBONES["RFDETR"])["weight_decay_exclude"])
    optimizer.build(model.trainable_variables)
    free = {
        variable.path.split("/", 1)[1]
        for variable, decays in zip(model.trainable_variables, optimizer._decays, strict=True)
        if not decays
    }
    wanted = {
        path
        for path in (variable.path.split("/", 1)[1] for variable in model.trainable_variables)
        if path.startswith("backbone/") and any(word in path for word in ("norm", "bias", "embeddings"))
    }
    assert free == wanted
    assert len(wanted) > 20


def test_several_sizes_are_windows_apart():
    sizes = td.RFDETR.presets["rf-detr-nano"].recipe["multiscale"]
    assert [384 * factor for factor in sizes] == pytest.approx([32 * units for units in range(7, 18)])
