"""The model as an object: inputs of any size, outputs, precision, saving, presets, and what is trained."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.models import DETR, PRESETS, DETRConfig


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 33, 65), (3, 64, 40)])
def test_any_size_and_batch(model, make_batch, batch, height, width):
    inputs, _ = make_batch(batch, height, width)
    outputs = model(inputs)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "logits": (batch, 5, 4),
        "pred_boxes": (batch, 5, 4),
        "aux_logits": (batch, 1, 5, 4),
        "aux_boxes": (batch, 1, 5, 4),
    }
    for name, value in outputs.items():
        assert np.isfinite(value).all(), name
        if name.endswith("boxes"):
            assert ((value > 0) & (value < 1)).numpy().all()


def test_without_a_mask_everything_is_image(model, make_batch):
    pixels = make_batch()[0]["pixel_values"]
    expected = model({"pixel_values": pixels, "pixel_mask": np.ones(pixels.shape[:3], np.int32)})
    for inputs in (pixels, {"pixel_values": pixels}, {"pixel_values": pixels, "pixel_mask": None}):
        for name, value in model(inputs).items():
            np.testing.assert_array_equal(value, expected[name])


def test_the_dtype_of_the_mask_does_not_matter(model, make_batch):
    inputs, _ = make_batch()
    expected = model(inputs)["logits"]
    for dtype in ("bool", "float32", "int64", "uint8"):
        cast = {**inputs, "pixel_mask": inputs["pixel_mask"].astype(dtype)}
        np.testing.assert_array_equal(model(cast)["logits"], expected)


def test_padding_within_the_mask_does_not_reach_the_outputs(make_model, make_batch):
    """A learned embedding does not depend on the mask: what stands in masked cells is all that could leak."""
    model = make_model(position_embedding="learned")
    inputs, _ = make_batch(height=64, width=64)
    # The first half of the picture is further from the padding than the convolutions can see.
    inputs["pixel_mask"][...] = 1
    inputs["pixel_mask"][:, :, 8:] = 0
    expected = model(inputs)["logits"]
    inputs["pixel_values"][:, :, 56:] = 100
    np.testing.assert_allclose(model(inputs)["logits"], expected, rtol=0, atol=1e-6)
    inputs["pixel_values"][:, :, :8] = 100
    assert np.abs(model(inputs)["logits"] - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((32, 32, 3)), r"pixel_values must be \(batch, height, width, 3\), not \(32, 32, 3\)"),
        (np.zeros((1, 3, 32, 32)), r"not \(1, 3, 32, 32\)"),
        (
            {"pixel_values": np.zeros((2, 32, 32, 3)), "pixel_mask": np.ones((2, 32, 31))},
            r"pixel_mask \(2, 32, 31\) must have the batch, height and width of pixel_values \(2, 32, 32, 3\)",
        ),
        ({"pixel_values": np.zeros((2, 32, 32, 3)), "pixel_mask": np.ones((1, 32, 32))}, r"pixel_mask \(1, 32, 32\)"),
        (
            {"pixel_values": np.zeros((2, 32, 32, 3)), "pixel_mask": np.ones((2, 32, 32, 1))},
            r"pixel_mask \(2, 32, 32, 1\)",
        ),
    ],
)
def test_inputs_that_do_not_fit(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model(inputs)


def test_stages_are_named_in_order_and_end_in_the_outputs(model, make_batch):
    inputs, _ = make_batch(height=32, width=48)
    stages, outputs = model.stages(inputs), model(inputs)
    shapes = {name: tuple(value.shape) for name, value in stages.items() if name not in outputs}
    assert list(shapes.items()) == [
        ("backbone.stage1", (2, 8, 12, 8)),
        ("backbone.stage2", (2, 4, 6, 16)),
        ("mask", (2, 4, 6)),
        ("position", (2, 24, 16)),
        ("projection", (2, 24, 16)),
        ("encoder.layer0", (2, 24, 16)),
        ("decoder.layer0", (2, 5, 16)),
        ("decoder.layer1", (2, 5, 16)),
    ]
    for name, value in outputs.items():
        np.testing.assert_array_equal(stages[name], value)


def test_auxiliary_outputs_can_be_switched_between_predictions(make_model, make_batch):
    model = make_model()
    inputs, _ = make_batch(batch=2)
    both = model.predict(inputs, batch_size=1, verbose=0)
    assert set(both) == {"logits", "pred_boxes", "aux_logits", "aux_boxes"}
    model.auxiliary_outputs = False
    assert not model.config.auxiliary_outputs
    last = model.predict(inputs, batch_size=1, verbose=0)
    assert set(last) == {"logits", "pred_boxes"}
    # The two images went in one by one: the results are put together again.
    for name, value in model(inputs).items():
        np.testing.assert_allclose(last[name], value, rtol=0, atol=1e-6)
        np.testing.assert_allclose(both[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"auxiliary_outputs": False, "position_embedding": "learned"}])
def test_saving_keeps_weights_and_outputs_bit_for_bit(make_model, make_batch, tmp_path, changes):
    model = make_model(id2label={0: "cat", 1: "dog", 2: "chat"}, **changes)
    model.criterion = SetCriterion(eos_coefficient=0.4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.config, loaded.criterion, loaded.name) == (model.config, model.criterion, model.name)
    assert loaded.id2label == {0: "cat", 1: "dog", 2: "chat"}
    assert [weight.path for weight in loaded.weights] == [weight.path for weight in model.weights]
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    inputs, _ = make_batch()
    expected = model(inputs)
    for name, value in loaded(inputs).items():
        np.testing.assert_array_equal(value, expected[name])


def test_get_config_round_trip(make_model):
    model = make_model(
        backbone={"dilation": True}, frozen="stem+stage1", dtype="mixed_bfloat16", id2label={0: "a", 1: "b", 2: "c"}
    )
    again = DETR.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert again.dtype_policy.name == "mixed_bfloat16"
    assert [(w.path, w.trainable) for w in again.weights] == [(w.path, w.trainable) for w in model.weights]


def test_mixed_precision_computes_in_bfloat16_and_answers_in_float32(make_model, make_batch):
    inputs, _ = make_batch()
    full, mixed = make_model(), make_model(dtype="mixed_bfloat16")
    expected, got = full.stages(inputs), mixed.stages(inputs)
    for name in ("backbone.stage2", "position", "projection", "encoder.layer0", "decoder.layer1"):
        assert got[name].dtype == tf.bfloat16, name
    for name in mixed(inputs):
        assert got[name].dtype == tf.float32, name
        # Eight bits of mantissa through a dozen layers; the sigmoid flattens what becomes of the boxes.
        tolerance = 2e-3 if name.endswith("boxes") else 0.1
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=tolerance, err_msg=name)
    assert {weight.dtype for weight in mixed.weights} == {"float32"}


def test_a_global_policy_is_taken_up(make_model):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make_model()
    finally:
        keras.config.set_dtype_policy(before)
    assert model.decoder.stack[0].dtype_policy.name == "mixed_bfloat16"
    assert model.class_head.dtype_policy.name == "float32"


def test_no_two_weights_start_alike_and_the_seed_decides_how():
    def start():
        keras.utils.set_random_seed(3)
        return {weight.path: np.array(weight) for weight in DETR.from_preset("detr-resnet-18").weights}

    weights, again = start(), start()
    assert all(np.array_equal(again[path], value) for path, value in weights.items())
    drawn = [(path, value) for path, value in weights.items() if value.std() > 0]
    assert len(drawn) > 100
    for index, (path, value) in enumerate(drawn):
        for other_path, other in drawn[:index]:
            assert value.shape != other.shape or not np.array_equal(value, other), f"{path} is {other_path}"


def test_presets_with_changes():
    model = DETR.from_preset("detr-tiny", num_queries=7, id2label={0: "a", 1: "b"}, auxiliary_outputs=False)
    preset = PRESETS["detr-tiny"]
    assert model.config.backbone == preset.backbone
    assert (model.config.num_classes, model.config.num_queries, model.id2label) == (2, 7, {0: "a", 1: "b"})
    assert set(model(np.zeros((1, 32, 32, 3), np.float32))) == {"logits", "pred_boxes"}
    assert DETR.from_preset("detr-tiny", num_classes=1).id2label == {0: "class_0"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("detr-resnet-152", {}, "unknown preset 'detr-resnet-152'; there are detr-resnet-18, .*detr-tiny"),
        ("detr-tiny", {"querys": 3, "clases": 2}, "clases, querys: not a field of DETRConfig"),
        ("detr-tiny", {"num_queries": 0}, "num_queries must be at least 1"),
        ("detr-tiny", {"num_classes": 3, "id2label": {0: "a"}}, "id2label must name each of the ids 0 … 2"),
    ],
)
def test_presets_that_cannot_be(name, changes, message):
    with pytest.raises(ValueError, match=message):
        DETR.from_preset(name, **changes)


@pytest.mark.parametrize(
    ("frozen", "names"),
    [
        ((), set()),
        ("stem", {"backbone/stem"}),
        ("stem + layer1", {"backbone/stem", "backbone/stage1"}),  # as PyTorch names it
        (["backbone", "class_head"], {"backbone", "class_head"}),
        ("encoder+query_embedding", {"encoder", "query_embedding"}),
    ],
)
def test_freeze(make_model, frozen, names, tmp_path):
    """From the configuration, by a call that takes back an earlier one, and after saving."""
    again = make_model(frozen="backbone+decoder")
    again.freeze(frozen)
    again.save(tmp_path / "model.keras")
    for model in (make_model(frozen=frozen), again, keras.saving.load_model(tmp_path / "model.keras")):
        trained = {weight.path for weight in model.trainable_weights}
        for weight in model.weights:
            path = weight.path.split("/", 1)[1]
            fixed = "normalization/" in path or any(path.startswith(f"{name}/") for name in names)
            assert (weight.path in trained) != fixed, weight.path


@pytest.mark.slow
def test_what_is_frozen_later_is_trained_no_more(make_model, make_batch):
    model = make_model()
    inputs, targets = make_batch()
    for frozen in ("", "backbone+encoder"):
        model.freeze(frozen)
        model.compile(optimizer=keras.optimizers.Adam(0.01))
        before = {weight.path: np.array(weight) for weight in model.weights}
        model.train_on_batch(inputs, targets)
        moved = {w.path.split("/")[1] for w in model.weights if (np.array(w) != before[w.path]).any()}
        assert ("backbone" in moved, "encoder" in moved, "decoder" in moved) == (not frozen, not frozen, True)
    with pytest.raises(ValueError, match="'trunk' is no part of this model"):
        model.freeze("trunk")


def test_frozen_batch_norm_stays_frozen_when_the_model_is_made_trainable(make_model, make_batch):
    model = make_model(frozen="stem+stage1")
    model.trainable = True
    vectors = {weight.path: np.array(weight) for weight in model.weights if "normalization/" in weight.path}
    assert len(vectors) == 4 * 6  # stem, two convolutions a block, one shortcut
    assert not vectors.keys() & {weight.path for weight in model.trainable_weights}
    model(make_batch()[0], training=True)
    for weight in model.weights:
        if weight.path in vectors:
            np.testing.assert_array_equal(weight, vectors[weight.path])


def test_trainable_batch_norm_learns_and_counts(make_model, make_batch):
    model = make_model(backbone={"batch_norm": "trainable"})
    trained = {weight.path.rsplit("/", 1)[1] for weight in model.trainable_weights if "normalization/" in weight.path}
    assert trained == {"gamma", "beta"}
    statistics = {w.path: np.array(w) for w in model.weights if w.path.endswith(("moving_mean", "moving_variance"))}
    assert len(statistics) == 2 * 6
    inputs, _ = make_batch()
    model(inputs, training=False)
    assert all((np.array(w) == statistics[w.path]).all() for w in model.weights if w.path in statistics)
    model(inputs, training=True)
    assert all((np.array(w) != statistics[w.path]).any() for w in model.weights if w.path in statistics)


def test_dropout_acts_in_training_only(make_model, make_batch):
    model = make_model(dropout=0.5)
    inputs, _ = make_batch()
    np.testing.assert_array_equal(model(inputs)["logits"], model(inputs)["logits"])
    difference = model(inputs, training=True)["logits"] - model(inputs, training=True)["logits"]
    assert np.abs(difference).max() > 1e-3


def test_config_is_kept_as_it_is(make_model):
    config = DETRConfig(num_classes=1, num_queries=2, d_model=8, backbone=make_model().config.backbone)
    assert DETR(config).config is config
