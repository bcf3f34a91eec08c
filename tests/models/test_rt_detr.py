"""What RT-DETR and RT-DETRv2 have of their own: how they start, what they refuse, batches as people have them."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from fresh_weights import assert_starts_alike
from keras import ops
from some_slow import some_slow

import tfdetr_keras as td
from port_weights.exports import to_torch
from port_weights.families import family_of
from tfdetr_keras.models.rt_detr_config import RTDETRConfig
from tfdetr_keras.models.rt_detr_v2 import RTDETRV2Config

pytestmark = pytest.mark.usefixtures("plain_parts")

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "rt_detr.json").read_text())
SMALL = {
    "backbone": td.ResNetConfig("basic", (1, 1, 1, 1), (8, 12, 16, 24), 8, variant="vd", batch_norm="trainable"),
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
    "preprocessing": td.Preprocessing((64, 64), "stretch", mean=(0, 0, 0), std=(1, 1, 1), multiple_of=32),
}
SIDES = (64, 96)


def small(**changes):
    keras.utils.set_random_seed(0)
    return td.RTDETR(RTDETRConfig(**SMALL | changes))


def pixels_of(batch=2, sides=SIDES):
    return np.random.default_rng(0).random((batch, *sides, 3), dtype="float32")


def targets_of(*counts, rows=None):
    rng = np.random.default_rng(1)
    shape = len(counts), rows or max(*counts, 1)
    labels = np.where(np.arange(shape[1]) < np.array(counts)[:, None], rng.integers(0, 4, shape), -1)
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (*shape, 2)), rng.uniform(0.1, 0.4, (*shape, 2))], -1)
    return {"labels": labels.astype("int32"), "boxes": boxes.astype("float32")}


# ---- how it starts ----


def recorded_model(kind):
    """The small model whose start was recorded, with fresh weights."""
    told = RECORDED["architecture"][kind]
    widths = (256, 512, 1024, 2048) if told["bottleneck"] else (64, 128, 256, 512)
    block = "bottleneck" if told["bottleneck"] else "basic"
    backbone = td.ResNetConfig(block, tuple(told["blocks"]), widths, variant="vd", batch_norm="trainable")
    fields = {
        "backbone": backbone,
        "num_classes": told["classes"],
        "num_queries": told["queries"],
        "d_model": told["width"],
        "encoder_dim": told["encoder_width"],
        "encoder_ffn_dim": told["encoder_ffn"],
        "encoder_attention_heads": told["heads"],
        "expansion": told["expansion"],
        "decoder_layers": told["layers"],
        "decoder_attention_heads": told["heads"],
        "decoder_ffn_dim": told["decoder_ffn"],
        "decoder_points": told["points"],
        "num_denoising": told["denoising"],
    }
    kind, config = (td.RTDETR, RTDETRConfig) if kind == "v1" else (td.RTDETRV2, RTDETRV2Config)
    return kind(config(**fields))


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_fresh_model_starts_as_the_authors(kind):
    """Each tensor outside the backbone, which they take from ImageNet: its mean, deviation and largest value."""
    keras.utils.set_random_seed(3)
    model = recorded_model(kind)
    ours = to_torch(model, family_of(model.config).authors_scheme(model.config))
    theirs = RECORDED["initial"][kind]
    assert set(theirs) <= set(ours)
    assert_starts_alike(ours, theirs, least=128)


def test_the_padding_class_stays_as_it_is():
    model = small()
    rows = np.asarray(model.denoising_embedding.embeddings)
    assert (rows[-1] == 0).all()
    assert np.std(rows[:-1]) == pytest.approx(1, abs=0.3)
    with tf.GradientTape() as tape:
        found = ops.sum(ops.square(model.denoising_embedding(np.array([[0, 1, 4, 4]])) + 1))
    gradient = tf.convert_to_tensor(tape.gradient(found, model.denoising_embedding.embeddings.value)).numpy()
    assert (gradient[-1] == 0).all()
    assert (gradient[:2] != 0).all()


# Parameters of transformers' models of the published sizes, whose backbones' normalisations are constants.
PARAMETERS = {"r18": 20_174_608, "r34": 31_424_388, "r50-m": 36_593_772, "r50": 42_891_372, "r101": 76_556_268}


@pytest.mark.parametrize(
    "size", [size if size == "r18" else pytest.param(size, marks=pytest.mark.slow) for size in PARAMETERS]
)
@pytest.mark.parametrize("version", ["", "v2-"])
def test_presets_have_the_published_number_of_parameters(version, size):
    model = td.from_preset(f"rt-detr-{version}{size}")
    counted = [
        int(np.prod(weight.shape))
        for weight in model.weights
        if "moving_" not in weight.path and not ("backbone/" in weight.path and "/normalization/" in weight.path)
    ]
    assert sum(counted) == PARAMETERS[size]


# ---- what it refuses ----


def test_padding_is_refused_by_name():
    model, pixels = small(), pixels_of()
    mask = np.ones((2, *SIDES), "int32")
    np.testing.assert_array_equal(
        model({"pixel_values": pixels, "pixel_mask": mask})["logits"], model(pixels)["logits"]
    )
    mask[1, :, 60:] = 0
    batch = {"pixel_values": pixels, "pixel_mask": mask}
    complaint = r"2304 pixels are padding, but RT-DETR knows no padding"
    with pytest.raises(ValueError, match=complaint):
        model(batch)
    model.compile(optimizer=td.AdamW(), run_eagerly=True)
    targets = targets_of(2, 1)
    for data in (
        {"x": batch, "y": targets},
        {"x": tf.data.Dataset.from_tensors((batch, targets))},
        {"x": iter([(batch, targets)]), "steps_per_epoch": 1},
    ):
        with pytest.raises(ValueError, match=complaint):
            model.fit(**data, verbose=0)
    for inputs in (batch, tf.data.Dataset.from_tensors((batch, targets)), tf.data.Dataset.from_tensors(batch)):
        with pytest.raises(ValueError, match=complaint):
            model.predict(inputs, verbose=0)
    with pytest.raises(ValueError, match=complaint):
        model.predict_on_batch(batch)


@pytest.mark.parametrize(
    ("preprocessing", "complaint"),
    [
        (td.Preprocessing((480, 640)), "the rule 'huggingface' gives images of several sizes"),
        (td.Preprocessing((64, 64), "stretch", pad_to=(96, 96)), "would be padded to 96 x 96"),
        (td.Preprocessing((60, 64), "stretch", multiple_of=32), "would be padded to 64 x 64: use multiples of 32"),
    ],
)
def test_preprocessing_that_pads_is_refused(preprocessing, complaint):
    with pytest.raises(ValueError, match=complaint):
        RTDETRConfig(**SMALL | {"preprocessing": preprocessing})
    model, image = small(), np.zeros((50, 70, 3), "uint8")
    with pytest.raises(ValueError, match=complaint):
        model.detect(image, preprocessing=preprocessing)
    with pytest.raises(ValueError, match=complaint):
        td.training.Settings(preprocessing=preprocessing).preprocessing_of(model)
    with pytest.raises(ValueError, match="RT-DETR knows no padding"):
        td.training.Settings(pad_to="buckets").preprocessing_of(model)


def test_sizes_that_do_not_fit():
    model = small()
    with pytest.raises(ValueError, match=r"images of 100 x 96 pixels .* RT-DETR takes multiples of 32"):
        model(pixels_of(sides=(100, 96)))
    with pytest.raises(ValueError, match=r"preprocessing.size must be in multiples of 32 pixels, not \(100, 96\)"):
        model.preprocessing = td.Preprocessing((100, 96), "stretch")
    with pytest.raises(ValueError, match=r"images of 100 x 96 pixels .* RT-DETR takes multiples of 32"):
        model.detect(np.zeros((50, 70, 3), "uint8"), preprocessing=td.Preprocessing((100, 96), "stretch"))


FEW = "21 positions on all levels, of which 40 queries cannot be chosen"


def test_images_with_fewer_positions_than_queries():
    """Eagerly, and where shapes are known while graphs are made: `prepare` gives images of one size."""
    model = small(num_queries=40, num_classes=3)
    with pytest.raises(ValueError, match=FEW):
        model(pixels_of(sides=(32, 32)))
    with pytest.raises(ValueError, match=FEW):
        model.detect(np.zeros((50, 70, 3), "uint8"), preprocessing=model.preprocessing.changed(size=(32, 32)))


@pytest.mark.slow
def test_such_images_in_training_and_evaluation(tmp_path):
    model = small(num_queries=40, num_classes=3)
    records, names = td.data.load_shapes(4, seed=0, size=(48, 64))
    batches = td.data.prepare(records, 2, training=True, preprocessing=model.preprocessing.changed(size=(32, 32)))
    assert tuple(batches.element_spec[0]["pixel_values"].shape) == (2, 32, 32, 3)
    model.compile(optimizer=td.AdamW(), jit_compile=False)
    with pytest.raises(ValueError, match=FEW):
        model.fit(batches, verbose=0)
    with pytest.raises(ValueError, match=FEW):
        model.predict(batches, verbose=0)
    with pytest.raises(ValueError, match=FEW):
        td.evaluation.evaluate_detections(model, records, names, size=(32, 32))
    model.save(tmp_path / "model.keras")
    # 64 pixels are enough, but not for the smallest of several sizes.
    settings = {"epochs": 1, "batch_size": 2, "size": (64, 64), "augmentation": "flip"}
    with pytest.raises(ValueError, match=FEW):
        td.fit_detector(
            records, names, tmp_path / "run", None, tmp_path / "model.keras", multiscale=(0.5, 1.0), **settings
        )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"inference_layers": 4}, "inference_layers=4, but the decoder has 3 layers"),
        ({"attended_levels": (3,)}, "attended_levels must be numbers of levels, from 0 to 2"),
        ({"num_denoising": -1}, "num_denoising must be a whole number of at least 0"),
        ({"num_feature_levels": 5}, "the backbone has 4 maps"),
        ({"label_noise_ratio": 1.5}, "label_noise_ratio must be a number from 0 to 1"),
        ({"expansion": 0.0}, "leaves no channels"),
        ({"d_model": 15}, "d_model=15 is not divisible by decoder_attention_heads=2"),
        ({"encoder_dim": 18}, "encoder_dim=18 must be divisible by 4"),
    ],
)
def test_configurations_that_cannot_be(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        RTDETRConfig(**SMALL | changes)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"decoder_points": (4, 4)}, "one for each of the 3 levels"),
        ({"sampling": "nearest"}, "sampling='nearest' must be one of"),
        ({"offset_scale": 0}, "offset_scale must be a finite number above 0"),
    ],
)
def test_configurations_of_the_second_version_that_cannot_be(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        RTDETRV2Config(**SMALL | changes)


# ---- batches as people have them ----


@pytest.mark.parametrize(
    "counts", some_slow([(0, 0), (15, 0)], (15, 0)), ids=["no object", "more objects than queries"]
)
def test_a_step_is_finite(counts):
    model = small()
    model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)
    for rows in (None, 20):
        logs = model.train_on_batch(pixels_of(), targets_of(*counts, rows=rows), return_dict=True)
        assert all(np.isfinite(value) for value in logs.values()), logs
    assert all(np.isfinite(np.asarray(weight)).all() for weight in model.weights)


def test_targets_without_a_row():
    model = small()
    model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)
    nothing = {"labels": np.zeros((2, 0), "int32"), "boxes": np.zeros((2, 0, 4), "float32")}
    assert np.isfinite(model.train_on_batch(pixels_of(), nothing, return_dict=True)["loss"])


@pytest.mark.slow
def test_one_trace_for_any_number_of_objects():
    """Batches of 1 to 9 objects a row, as `tf.data` pads them: the step is compiled once."""
    model, traces = small(), []
    forward = model._forward

    def counted(*args, **kwargs):
        traces.append(1)
        return forward(*args, **kwargs)

    model._forward = counted
    model.compile(optimizer=td.AdamW(1e-3), jit_compile=False)

    def batches():
        for most in (1, 9, 2):
            yield pixels_of(), targets_of(most, 1)

    spec = {"labels": tf.TensorSpec((2, None), tf.int32), "boxes": tf.TensorSpec((2, None, 4), tf.float32)}
    signature = tf.TensorSpec((2, *SIDES, 3), tf.float32), spec
    model.fit(tf.data.Dataset.from_generator(batches, output_signature=signature), verbose=0)
    assert len(traces) == 1


def test_the_queries_found_do_not_depend_on_denoising():
    """In training, with denoising queries before the others and without: who is seen by nobody changes nothing."""
    model, pixels = small(backbone=dataclasses.replace(SMALL["backbone"], batch_norm="frozen")), pixels_of()
    model.freeze(model.config.parts)  # or the statistics of batch normalisation would move
    plain = model({"pixel_values": pixels}, training=True)
    given = model({"pixel_values": pixels, "targets": targets_of(3, 1)}, training=True)
    assert "denoising" not in plain["prediction_sets"]
    assert given["prediction_sets"]["denoising"]["logits"].shape == (2, 3, 12, 4)
    for name in ("logits", "pred_boxes", "aux_logits", "aux_boxes"):
        np.testing.assert_allclose(plain[name], given[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_without_denoising():
    model = small(num_denoising=0)
    assert "denoising_embedding" not in model.config.parts
    model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)
    assert np.isfinite(model.train_on_batch(pixels_of(), targets_of(3, 1), return_dict=True)["loss"])


@pytest.mark.slow
def test_fewer_layers_in_inference():
    """The boxes are those of that layer's heads, and training has all layers."""
    whole = small()
    for weight in whole.weights:
        if "head" in weight.path and "bias" not in weight.path:
            weight.assign(keras.random.normal(weight.shape, stddev=0.3, seed=1))
    pixels = pixels_of()
    of_all, predicted = whole(pixels), whole.predict(pixels, verbose=0)
    short = whole
    short.inference_layers = 2
    of_two = short(pixels)
    assert (short.predict(pixels, verbose=0)["logits"] != predicted["logits"]).any()
    np.testing.assert_array_equal(of_two["logits"], of_all["aux_logits"][:, 1])
    np.testing.assert_array_equal(of_two["pred_boxes"], of_all["aux_boxes"][:, 1])
    assert of_two["aux_logits"].shape[1] == 1
    np.testing.assert_allclose(short.fold()(pixels)["logits"], of_two["logits"], rtol=0, atol=1e-5)
    assert short(pixels, training=True)["aux_logits"].shape[1] == 2


def test_learned_content():
    model = small(learned_content=True)
    assert model.content_embedding.embeddings.shape == (12, 16)
    outputs = model(pixels_of())
    assert outputs["logits"].shape == (2, 12, 4)


def test_any_multiple_of_32():
    model = small()
    for sides in ((32, 64), (96, 32), (128, 160)):
        outputs = model(pixels_of(sides=sides))
        assert outputs["pred_boxes"].shape == (2, 12, 4)


def test_evaluation_at_another_size_than_training():
    records, names = td.data.load_shapes(8, seed=0, size=(48, 64))
    model = small(num_classes=len(names), id2label=names)
    metrics = td.evaluation.evaluate_detections(model, records, names, size=(96, 128))
    assert 0 <= metrics["AP"] <= 1
    assert len(model.detect(next(iter(records))["image"].numpy(), threshold=0.0)) == model.config.num_queries


@pytest.mark.slow
def test_ap_counts_as_many_answers_as_queries():
    """As its authors measure, and as `detect` answers; of a focal loss 100 count."""
    records, names = td.data.load_shapes(2, seed=0, size=(48, 64))
    evaluator = td.evaluation.Evaluator(records, names, max_detections=200)
    evaluator(small(num_classes=len(names), id2label=names))
    assert [len(found["scores"]) for found in evaluator.detections] == [12, 12]
    evaluator(td.from_preset("deformable-detr-tiny", id2label=names))
    assert [len(found["scores"]) for found in evaluator.detections] == [75, 75]  # of 25 queries, all pairs


def test_as_many_answers_as_queries():
    model = small(num_queries=21)
    outputs = model(pixels_of(sides=(32, 32)))
    (found, _) = td.post_process(outputs, [(32, 32)] * 2, 0.0, "varifocal")
    assert len(found["scores"]) == 21
    # A query may speak for several classes.
    assert (np.diff(found["scores"]) <= 0).all()


# ---- how it is trained where nothing is said ----

TABLE = {
    "rt-detr-r18": (0.1, ["norms", "biases"], True, 0),
    "rt-detr-r34": (0.1, ["norms", "biases"], True, 0),
    "rt-detr-r50-m": (0.1, ["norms", "biases"], True, 0),
    "rt-detr-r50": (0.1, ["norms", "biases"], True, 0),
    "rt-detr-r101": (0.01, ["norms", "biases"], True, 0),
    "rt-detr-v2-r18": (1.0, ["norms"], False, 3),
    "rt-detr-v2-r34": (0.5, ["norms", "biases"], True, 3),
    "rt-detr-v2-r50-m": (0.1, ["norms"], True, 3),
    "rt-detr-v2-r50": (0.1, ["norms"], True, 1),
    "rt-detr-v2-r101": (0.01, ["norms"], True, 1),
}


@pytest.mark.parametrize("name", TABLE)
def test_recipes_are_those_of_the_authors_configurations(name):
    """Of lyuwenyu/RT-DETR, rtdetr_pytorch and rtdetrv2_pytorch."""
    preset = td.PRESETS[name]
    recipe = preset.recipe
    names = ("backbone_multiplier", "weight_decay_exclude", "multiscale")
    assert (*(recipe[name] for name in names), recipe.get("plain_epochs", 0)) == TABLE[name]
    assert recipe.get("warmup_steps", 0) == (2000 if "v2" in name else 0)
    assert (recipe["learning_rate"], recipe["schedule"], recipe["ema_momentum"]) == (1e-4, "constant", 0.9999)
    is_small = name.endswith(("r18", "r34"))
    assert (preset.backbone.batch_norm, preset.frozen) == (("trainable", ()) if is_small else ("frozen", ("stem",)))


def test_an_architecture_beside_the_presets_has_their_recipe():
    for kind in (RTDETRConfig, RTDETRV2Config):
        recipe = kind(**SMALL).recipe
        assert (recipe["augmentation"], recipe["schedule"], recipe["ema_momentum"]) == ("strong", "constant", 0.9999)


def test_offsets_to_whole_pixels_are_not_trained():
    """They have no gradient, and would only decay."""
    model = td.RTDETRV2(RTDETRV2Config(**SMALL, sampling="discrete"))
    model.trainable = True
    model.freeze(())
    assert not any("sampling_offsets" in variable.path for variable in model.trainable_variables)
    before = {variable.path: variable.numpy() for variable in model.variables if "sampling_offsets" in variable.path}
    assert len(before) == 6
    model.compile(optimizer=td.AdamW(1e-2, weight_decay=0.1), run_eagerly=True)
    model.train_on_batch(pixels_of(), targets_of(2, 1))
    for variable in model.variables:
        if variable.path in before:
            np.testing.assert_array_equal(variable.numpy(), before[variable.path])
    assert any("sampling_offsets" in variable.path for variable in small().trainable_variables)


def test_without_further_prediction_sets_nothing_is_denoised():
    model = small(auxiliary_outputs=False)
    inputs = {"pixel_values": pixels_of(), "targets": targets_of(2, 1)}
    assert not any("denoising" in name for name in model.stages(inputs, training=True))
    model.auxiliary_outputs = True
    assert any("denoising" in name for name in model.stages(inputs, training=True))


def test_labels_are_not_smoothed_where_scores_are_qualities():
    with pytest.raises(ValueError, match=r"label_smoothing=0.1: a query's score is the quality of its box here"):
        td.SetCriterion(classification="varifocal", label_smoothing=0.1)


@pytest.mark.slow
def test_denoising_and_batch_normalization_are_settings(tmp_path):
    small(num_classes=3, id2label=["circle", "square", "triangle"]).save(tmp_path / "model.keras")
    records, names = td.data.load_shapes(4, seed=0, size=(48, 64))
    options = {"epochs": 1, "batch_size": 2, "augmentation": "flip", "multiscale": False, "num_denoising": 0}
    run = td.fit_detector(
        records, names, tmp_path / "run", None, tmp_path / "model.keras", batch_norm="frozen", **options
    )
    model = run.load_model("last")
    assert model.config.num_denoising == 0
    assert model.config.encoder_batch_norm == model.config.backbone.batch_norm == "frozen"
    before = td.load_model(tmp_path / "model.keras")
    kept = {variable.path: variable.numpy() for variable in before.variables if "moving_" in variable.path}
    for variable in model.variables:
        if "moving_" in variable.path:
            np.testing.assert_array_equal(variable.numpy(), kept.pop(variable.path))
    assert not kept
    with pytest.raises(ValueError, match=r"num_denoising=5: a DETR has no denoising queries"):
        td.fit_detector(records, names, tmp_path / "other", None, "detr-tiny", epochs=1, num_denoising=5)
