"""The attention laid out for TensorFlow against Keras' own, and given scores against a float64 softmax, and back."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import attention_of_scores
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras.layers.attention import AttentionInitializer, MultiHeadAttention

BATCH, QUERIES, KEYS, CHANNELS, HEADS = 3, 5, 11, 24, 4
# Of outputs and gradients, in roundings of the largest number in their sums. Measured: 4 at most.
ROUNDINGS = 8


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
    query, value, key, mask, _ = inputs
    ours, theirs = pair(**options)
    if options:
        theirs._dropout_layer.seed_generator.state.assign(ours._dropout_layer.seed_generator.state)
    results = [
        layer(query, value, key, attention_mask=mask, return_attention_scores=True, training=True)
        for layer in (ours, theirs)
    ]
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("options", [{"dropout": 0.5}, {}])
def test_a_mask_of_queries_and_keys_is_keras(pair, inputs, batch, options):
    """As denoising needs it: which query sees which, the same in all images or not."""
    query, value, key, _, d_outputs = inputs
    seen = np.random.default_rng(3).random((batch, QUERIES, KEYS)) < 0.4
    seen[..., 0] = True
    mask = tf.constant(seen)

    def outputs_and_gradients(layer):
        with tf.GradientTape() as tape:
            tape.watch([query, value, key])
            outputs = layer(query, value, key, attention_mask=mask)
        return [outputs, *tape.gradient(outputs, [query, value, key], output_gradients=d_outputs)]

    ours, expected = map(outputs_and_gradients, pair(**options))
    for found, wanted in zip(ours, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max() + 1e-7)


def test_a_query_that_sees_nothing_attends_to_all_alike(pair, inputs):
    query, value, key, _, _ = inputs
    layer, _ = pair()
    seen = np.ones((1, QUERIES, KEYS), bool)
    seen[0, 2] = False
    outputs, weights = layer(query, value, key, attention_mask=tf.constant(seen), return_attention_scores=True)
    assert np.isfinite(outputs).all()
    np.testing.assert_allclose(np.asarray(weights)[:, :, 2], 1 / KEYS, rtol=1e-6)


def assert_exact(case, deviations):
    for name, deviation in deviations.items():
        assert deviation < ROUNDINGS, (case, name)  # NaN is not


@pytest.mark.parametrize("case", attention_of_scores.cases(), ids="-".join)
def test_padding_has_no_weight_however_large_the_scores(case):
    assert_exact(case, attention_of_scores.deviations(*case))


@pytest.mark.parametrize("dtype", attention_of_scores.EPSILON)
def test_padding_has_no_weight_when_xla_compiles(dtype):
    case = dtype, attention_of_scores.HIGHEST[-1], "plain"
    assert_exact(case, attention_of_scores.deviations(*case, compiled=True))


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.slow
def test_padding_has_no_weight_on_other_backends(backend, request):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("attention_of_scores.py"), "tensorflow", "transformers"],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": str(request.config.rootpath),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # as in tests/backend/test_other_backends.py
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cases = attention_of_scores.cases()
    for case, deviations in zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert_exact(case, deviations)


def test_padding_alone_gives_the_mean_of_the_values(inputs):
    query, value, key, mask, _ = inputs
    layer = MultiHeadAttention(1, CHANNELS, use_bias=False)
    layer.build(*[(None, None, CHANNELS)] * 3)
    identity = np.eye(CHANNELS).reshape(CHANNELS, 1, CHANNELS)
    layer.set_weights([identity * 1e6, identity * 1e6, identity, identity.transpose(1, 2, 0)])
    outputs = layer(query, value, key, attention_mask=tf.zeros_like(mask))
    expected = np.broadcast_to(np.mean(value, axis=1, keepdims=True), outputs.shape)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-6)
