"""The attention laid out for TensorFlow against Keras' own, forward and back."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras.models.attention import AttentionInitializer, MultiHeadAttention

BATCH, QUERIES, KEYS, CHANNELS, HEADS = 3, 5, 11, 24, 4


@pytest.fixture
def pair():
    """Makes our layer and Keras' with the same random weights."""

    def make(**options):
        rng = np.random.default_rng(0)
        both = [
            kind(HEADS, CHANNELS // HEADS, kernel_initializer=AttentionInitializer(CHANNELS), **options)
            for kind in (MultiHeadAttention, keras.layers.MultiHeadAttention)
        ]
        for layer in both:
            layer.build((None, None, CHANNELS), (None, None, CHANNELS), (None, None, CHANNELS))
        values = [rng.normal(size=weight.shape) / 3 for weight in both[0].weights]
        for layer in both:
            layer.set_weights(values)
        return both

    return make


@pytest.fixture
def inputs():
    """Queries, values, keys, a mask that hides a different number of keys in each image, and a gradient."""
    rng = np.random.default_rng(1)
    shapes = [(BATCH, QUERIES, CHANNELS), (BATCH, KEYS, CHANNELS), (BATCH, KEYS, CHANNELS)]
    query, value, key = (tf.constant(rng.normal(size=shape), "float32") for shape in shapes)
    mask = tf.constant(np.arange(KEYS) < np.array([[11], [7], [1]]))[:, None]
    return query, value, key, mask, tf.constant(rng.normal(size=shapes[0]), "float32")


@pytest.mark.parametrize("compiler", ["eager", "graph", "XLA"])
@pytest.mark.parametrize("is_masked", [True, False])
def test_outputs_and_gradients_are_keras(pair, inputs, compiler, is_masked):
    query, value, key, mask, d_outputs = inputs

    def outputs_and_gradients(layer):
        def run(query, value, key):
            with tf.GradientTape() as tape:
                tape.watch([query, value, key])
                outputs = layer(query, value, key, attention_mask=mask if is_masked else None)
            sources = [query, value, key, *(weight.value for weight in layer.trainable_weights)]
            return [outputs, *tape.gradient(outputs, sources, output_gradients=d_outputs)]

        if compiler != "eager":
            run = tf.function(run, jit_compile=compiler == "XLA")
        return run(query, value, key)

    ours, expected = map(outputs_and_gradients, pair())
    assert len(ours) == 12
    # The keys' bias changes no softmax: of its gradient there is only the rounding of the others.
    rounding = 2e-6 * max(np.abs(wanted).max() for wanted in expected)
    for found, wanted in zip(ours, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=rounding)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_what_padding_holds_changes_nothing(pair, inputs, policy):
    layer, _ = pair(dtype=policy)
    query, value, key, mask, _ = inputs
    padding = tf.cast(~mask[:, 0, :, None], "float32") * 50
    outputs = layer(query, value, key, attention_mask=mask)
    np.testing.assert_array_equal(outputs, layer(query, value + padding, key - padding, attention_mask=mask))
    assert np.abs(outputs - layer(query, value + 1, key, attention_mask=mask)).max() > 0.01


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_an_image_of_padding_alone_gives_numbers(pair, inputs, policy):
    query, value, key, mask, _ = inputs
    outputs = pair(dtype=policy)[0](query, value, key, attention_mask=tf.zeros_like(mask))
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {}])
def test_dropout_and_scores_are_keras(pair, inputs, options):
    """What the core does not know is left to Keras."""
    query, value, key, mask, _ = inputs
    ours, theirs = pair(seed=1, **options)
    results = []
    for layer in (ours, theirs):
        keras.utils.set_random_seed(3)
        results.append(layer(query, value, key, attention_mask=mask, return_attention_scores=True, training=True))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)
