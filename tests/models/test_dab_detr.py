"""DAB-DETR: where it starts, patterns, centres that stay where they are, and what an anchor's size does."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_model import CONFIG

import tfdetr_keras as td
from tfdetr_keras.models import DABDETR, DABDETRConfig

pytestmark = [pytest.mark.member(name="DABDETR"), pytest.mark.usefixtures("plain_parts")]

FIELDS = {field.name: getattr(CONFIG, field.name) for field in dataclasses.fields(CONFIG)}
FIELDS["activation_function"] = "prelu"


def make(dtype=None, **changes):
    keras.utils.set_random_seed(0)
    return DABDETR(DABDETRConfig(**{**FIELDS, **changes}), dtype=dtype)


def trained(**changes):
    """A model in which boxes move from layer to layer."""
    model, rng = make(**changes), np.random.default_rng(0)
    for weight in model.weights:
        if not weight.path.endswith("variance"):
            weight.assign(np.asarray(weight) + rng.normal(0, 0.2, weight.shape))
    return model


def probabilities(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


@pytest.fixture
def batch(make_batch):
    return make_batch(height=64, width=96)


@pytest.mark.parametrize("dtype", [None, "mixed_bfloat16"])
def test_it_starts_with_rare_classes_and_every_layer_s_boxes_at_the_anchors(dtype, batch):
    """In mixed precision, too: rounded to bfloat16, anchors would be off by 1e-3."""
    model = make(dtype)
    outputs, anchors = model(batch[0]), probabilities(model.query_embedding.embeddings)
    np.testing.assert_allclose(probabilities(model.class_head.bias), 0.01, rtol=1e-5)
    assert model.encoder.stack[0].feed_forward.activation.slope.numpy() == [0.25]
    for boxes in (outputs["pred_boxes"], outputs["aux_boxes"][:, 0]):
        np.testing.assert_allclose(boxes, np.broadcast_to(anchors, boxes.shape), rtol=0, atol=1e-6)


def test_each_layer_s_boxes_are_told_from_those_of_the_layer_before(batch):
    """By hand, from the embeddings: the heads look at them normalised, the anchors move with what they were before."""
    model = trained()
    seen = []
    call = model.box_head.call
    model.box_head.call = lambda x, offset=None: seen.append(offset) or call(x, offset)
    outputs = model(batch[0])
    first, of_boxes = seen  # with two decoder layers the anchors move once
    np.testing.assert_allclose(first[0], model.query_embedding.embeddings, atol=1e-5)
    np.testing.assert_allclose(of_boxes[:, 0], first, atol=1e-5)
    moved = np.abs(probabilities(of_boxes[:, 1]) - probabilities(first)).max()
    assert moved > 0.01
    assert np.abs(probabilities(of_boxes[:, 1]) - outputs["aux_boxes"][:, 0]).max() > 0.01  # the norm between the two


def test_patterns_that_are_equal_find_the_same_at_each_anchor(batch):
    """Pattern by pattern; and as one pattern alone, since attention among equals is an average."""
    one, three = trained(num_patterns=1), trained(num_patterns=3)
    weights = {weight.path: weight for weight in one.weights}
    for weight in three.weights:
        value = np.asarray(weights[weight.path])
        weight.assign(np.repeat(value, 3, axis=0) if "pattern_embedding" in weight.path else value)
    assert (one.config.num_predictions, three.config.num_predictions) == (5, 15)
    expected = one(batch[0])
    for name, value in three(batch[0]).items():
        assert value.shape[-2] == 15
        for pattern in range(3):
            rows = value[..., 5 * pattern : 5 * (pattern + 1), :]
            np.testing.assert_allclose(rows, expected[name], rtol=0, atol=2e-5, err_msg=name)


def test_patterns_find_different_things_at_an_anchor(batch):
    logits = np.asarray(trained(num_patterns=2)(batch[0])["logits"])
    assert np.abs(logits[:, :5] - logits[:, 5:]).max() > 0.01


@pytest.mark.slow
def test_a_model_with_patterns_trains_and_detects_all_of_its_rows(batch, tmp_path):
    model = make(num_patterns=3)
    model.compile(optimizer=td.AdamW(1e-3), jit_compile=False)
    assert np.isfinite(model.train_on_batch(*batch, return_dict=True)["loss"])
    image = np.zeros((64, 96, 3), np.uint8)
    assert len(model.detect(image, (64, 96), threshold=0.0)) == 15 * 3  # each row speaks for three classes
    model.save(tmp_path / "model.keras")
    fewer = td.from_pretrained(tmp_path / "model.keras", num_queries=4)
    assert fewer(batch[0])["logits"].shape == (2, 12, 3)
    np.testing.assert_array_equal(fewer.query_embedding.embeddings, model.query_embedding.embeddings[:4])
    np.testing.assert_array_equal(fewer.pattern_embedding.embeddings, model.pattern_embedding.embeddings)
    more = td.from_pretrained(tmp_path / "model.keras", num_queries=7)
    assert more(batch[0])["logits"].shape == (2, 21, 3)
    np.testing.assert_array_equal(more.query_embedding.embeddings[:5], model.query_embedding.embeddings)
    assert (np.asarray(more.query_embedding.embeddings[5:]) != 0).all()


@pytest.mark.slow
def test_a_saved_model_with_patterns_finds_what_keras_finds(tmp_path):
    model = trained(num_patterns=3)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    served = tf.saved_model.load(str(td.export.saved_model(model, tmp_path / "served", (64, 96))))
    found = served.signatures["serving_default"](images=tf.constant(image[None]))
    wanted = model.detect(image, (64, 96), threshold=-1.0)
    assert found["scores"].shape[-1] == 45
    np.testing.assert_allclose(np.ravel(found["scores"]), wanted.scores, rtol=0, atol=1e-5)


def test_centres_are_even_over_the_image_and_sizes_as_ever():
    anchors = np.asarray(make(num_queries=2000, random_refpoints_xy=True).query_embedding.embeddings)
    for places in probabilities(anchors[:, :2]).T:
        assert np.abs(np.sort(places) - (np.arange(2000) + 0.5) / 2000).max() < 0.05  # Kolmogorov and Smirnov
    np.testing.assert_allclose(anchors[:, 2:].std(axis=0), 1, atol=0.1)


@pytest.mark.slow
def test_fixed_centres_do_not_move_in_training_by_the_recipe(batch):
    model = make(random_refpoints_xy=True)
    before = np.asarray(model.query_embedding.embeddings)
    excluded = model.recipe["weight_decay_exclude"]
    optimizer = td.AdamW(0.1, weight_decay=0.1, weight_decay_exclude=excluded)
    model.compile(optimizer=optimizer, jit_compile=False)
    for _ in range(2):  # boxes do not look at the sizes before the first step
        model.train_on_batch(*batch)
    after = np.asarray(model.query_embedding.embeddings)
    np.testing.assert_array_equal(after[:, :2], before[:, :2])
    assert (after[:, 2:] != before[:, 2:]).all()
    assert make().recipe["weight_decay_exclude"] == ()


def test_gradients_of_fixed_centres_are_zero_and_all_others_as_if_they_were_not_fixed(batch):
    def gradients(model):
        with tf.GradientTape() as tape:
            loss = model.criterion(model(batch[0]), batch[1])["loss"]
        names = [variable.path for variable in model.trainable_variables]
        found = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        return {name: tf.convert_to_tensor(one).numpy() for name, one in zip(names, found, strict=True)}

    free, fixed = trained(), trained(random_refpoints_xy=True)
    fixed.set_weights(free.get_weights())
    expected, found = gradients(free), gradients(fixed)
    [anchors] = [name for name in found if "query_embedding" in name]
    assert (found[anchors][:, :2] == 0).all()
    assert (expected[anchors][:, :2] != 0).all()
    expected[anchors][:, :2] = 0
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-8, err_msg=name)


def test_wider_anchors_look_less_closely_at_columns_and_not_at_rows():
    """The half of the encoding that stands for x is divided by the width, the other by the height."""
    decoder, half = trained().decoder, CONFIG.d_model // 2
    anchors = np.array([[[0.3, 0.6, 0.2, 0.1]], [[0.3, 0.6, 0.4, 0.1]], [[0.3, 0.6, 0.2, 0.3]]], np.float32)
    content = np.ones((3, 1, CONFIG.d_model), np.float32)
    for index in range(2):
        usual, wide, high = np.asarray(decoder._position(index, content, None, {"seen": anchors})["sine"])[:, 0]
        np.testing.assert_allclose(wide[half:], usual[half:] / 2, rtol=1e-5)
        np.testing.assert_allclose(wide[:half], usual[:half], rtol=1e-5)
        np.testing.assert_allclose(high[:half], usual[:half] / 3, rtol=1e-5)
        np.testing.assert_allclose(high[half:], usual[half:], rtol=1e-5)
        assert np.abs(usual).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_patterns": -1}, "num_patterns must be a whole number of at least 0, not -1"),
        ({"num_patterns": 1.5}, "num_patterns must be a whole number of at least 0, not 1.5"),
        ({"random_refpoints_xy": 1}, "random_refpoints_xy must be true or false, not 1"),
        ({"temperature_width": 0}, "temperature_width must be a number above 0, not 0"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DABDETRConfig(**{**FIELDS, **changes})


def test_patterns_can_be_frozen():
    model = make(num_patterns=2, frozen="pattern_embedding")
    assert not model.pattern_embedding.trainable
    with pytest.raises(ValueError, match="'pattern_embedding' is no part of this model"):
        make(frozen="pattern_embedding")
