"""The convolution of each channel alone, against PyTorch's in float64, in every way in which TensorFlow runs it.

Measured on a CPU, relative to the largest of each kind: outputs 1.4e-7, gradients of the map 1.7e-7, of the kernel
1.6e-7.
"""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import keras
import numpy as np
import pytest
import tensorflow as tf
from some_slow import some_slow

from tfdetr_keras.backend.compiler import left_plain
from tfdetr_keras.layers.depthwise import DepthwiseConvolution, depthwise_convolution

TOLERANCES = 1e-6, 1.5e-6, 1.5e-6
CASES = {  # batch, height, width, channels, kernel, stride
    "5×5": (2, 9, 7, 6, 5, 1),
    "3×3": (1, 6, 8, 4, 3, 1),
    "3×3, stride 2, even sizes": (2, 8, 12, 5, 3, 2),
    "3×3, stride 2, odd sizes": (2, 9, 13, 5, 3, 2),
    "5×5, stride 2, one odd size": (1, 10, 7, 3, 5, 2),
    "smaller than the kernel": (2, 1, 2, 3, 5, 1),
    "one pixel, stride 2": (2, 1, 1, 3, 3, 2),
}
WAYS = ["eager", "graph", "XLA", "XLA, sizes unknown", "graph, sizes unknown"]


def arrays_of(case):
    """A map, a kernel and a gradient of the outputs."""
    batch, height, width, channels, size, stride = CASES[case]
    rng = np.random.default_rng(len(case))
    smaller = (-(-height // stride), -(-width // stride))
    shapes = (batch, height, width, channels), (size, size, channels, 1), (batch, *smaller, channels)
    return tuple(rng.normal(size=shape).astype("float32") for shape in shapes)


def in_a_way(way, function, channels):
    """A function of map, kernel and gradient of the outputs, run eagerly or as a graph."""
    if way == "eager":
        return function
    spec, kernel = tf.TensorSpec((None, None, None, channels)), tf.TensorSpec((None, None, channels, 1))
    signature = [spec, kernel, spec] if "unknown" in way else None
    return tf.function(function, jit_compile=way.startswith("XLA"), input_signature=signature, autograph=False)


def outputs_and_gradients(size, stride):
    def run(x, kernel, d_outputs):
        kernel = tf.ensure_shape(kernel, (size, size, kernel.shape[2], 1))
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            outputs = depthwise_convolution(x, kernel, stride)
        return outputs, *tape.gradient(outputs, [x, kernel], d_outputs)

    return run


def assert_close(found, expected):
    for one, other, tolerance in zip(found, expected, TOLERANCES, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("way", some_slow(WAYS, "XLA, sizes unknown"))
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_pytorchs(pytorch, case, way):
    *_, channels, size, stride = CASES[case]
    arrays = arrays_of(case)
    expected = pytorch.call("layers:depthwise_convolution", *arrays, stride)
    run = in_a_way(way, outputs_and_gradients(size, stride), channels)
    assert_close([one.numpy() for one in run(*map(tf.constant, arrays))], [np.asarray(one) for one in expected])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_takes_the_place_of_keras_own_layer(jit_compile):
    theirs = keras.layers.DepthwiseConv2D(5, padding="same", bias_initializer="normal")
    ours = DepthwiseConvolution(5)
    for layer in (theirs, ours):
        layer.build((None, None, None, 4))
    assert [(one.path.split("/")[-1], one.shape) for one in ours.weights] == [
        (one.path.split("/")[-1], one.shape) for one in theirs.weights
    ]
    ours.set_weights(theirs.get_weights())
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 6, 7, 4)), tf.float32)

    def gradients(layer):
        def run():
            with tf.GradientTape() as tape:
                outputs = layer(x)
                loss = tf.reduce_sum(tf.sin(outputs))
            return outputs, *tape.gradient(loss, [one.value for one in layer.trainable_variables])

        return [one.numpy() for one in tf.function(run, jit_compile=jit_compile, autograph=False)()]

    for found, expected in zip(gradients(ours), gradients(theirs), strict=True):
        # Measured: 1.7e-7.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1.5e-6 * np.abs(expected).max())


def operations_of(function):
    """What a graph of one map is made of."""
    graph = tf.function(function, autograph=False).get_concrete_function(tf.TensorSpec((None, None, None, 3))).graph
    return {operation.type for operation in graph.get_operations()}


def is_convolved_by_xla(convolve):
    """Whether XLA is given a convolution to compute."""
    x, kernel = tf.ones((1, 8, 8, 3)), tf.ones((3, 3, 3, 1))
    compiled = tf.function(lambda x: convolve(x, kernel), jit_compile=True, autograph=False)
    return "convolution(" in compiled.experimental_get_compiler_ir(x)("hlo")


@pytest.mark.parametrize("stride", [1, 2])
def test_plain_graphs_have_the_well_known_operation(stride):
    layer = DepthwiseConvolution(3, stride)
    layer.build((None, None, None, 3))
    assert "DepthwiseConv2dNative" in operations_of(layer)


def test_xla_has_no_convolution_on_a_cpu_alone(monkeypatch):
    assert is_convolved_by_xla(lambda x, kernel: keras.ops.depthwise_conv(x, kernel, padding="same"))
    assert not is_convolved_by_xla(depthwise_convolution)
    with left_plain():
        assert is_convolved_by_xla(depthwise_convolution)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    assert is_convolved_by_xla(depthwise_convolution)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
@pytest.mark.parametrize("way", ["graph", "XLA"])
def test_other_precisions(way, policy):
    plain, other = DepthwiseConvolution(5, 2), DepthwiseConvolution(5, 2, dtype=policy)
    for layer in (plain, other):
        layer.build((None, None, None, 6))
    other.set_weights(plain.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 6)).astype("float32")
    found = in_a_way(way, other, 6)(tf.constant(x))
    assert found.dtype == other.compute_dtype
    # Measured: bfloat16 3.6e-3, float16 8.5e-4, float64 1.7e-7.
    tolerance = {"mixed_bfloat16": 1e-2, "mixed_float16": 3e-3, "float64": 1e-6}[policy]
    expected = plain(x).numpy()
    np.testing.assert_allclose(tf.cast(found, tf.float32), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_a_model_is_saved_with_it(tmp_path):
    model = keras.Sequential([keras.Input((8, 10, 3)), DepthwiseConvolution(3, 2, use_bias=False, name="downsample")])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(1, 8, 10, 3)).astype("float32")
    np.testing.assert_array_equal(again(x), model(x))
    assert model.output_shape == (None, 4, 5, 3)
    assert again.layers[0].get_config() == model.layers[0].get_config()


def test_trains_in_fit_with_a_last_batch_of_another_size():
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 3)).astype("float32")
    losses = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((None, None, 3)), DepthwiseConvolution(3)])
        model.compile(loss="mse", optimizer=keras.optimizers.SGD(0.1), jit_compile=jit_compile)
        losses.append(model.fit(x, 2 * x, batch_size=2, epochs=3, shuffle=False, verbose=0).history["loss"])
    # Measured: 1.4e-7.
    np.testing.assert_allclose(*losses, rtol=1e-6)
    assert losses[0][-1] < losses[0][0]


def test_a_kernel_of_an_even_size_is_refused():
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        DepthwiseConvolution(4)


SCRIPT = """
    import sys

    import keras
    import numpy as np

    from tfdetr_keras.layers.depthwise import depthwise_convolution

    given = np.load(sys.argv[1])
    x, kernel, d_outputs = (given[name] for name in ("x", "kernel", "d_outputs"))
    stride = int(given["stride"])

    def convolve(x, kernel):
        return depthwise_convolution(x, kernel, stride)

    if keras.backend.backend() == "jax":
        import jax

        def both(x, kernel, d_outputs):
            outputs, back = jax.vjp(convolve, x, kernel)
            return outputs, *back(d_outputs)

        found = both(x, kernel, d_outputs)
        for one, other in zip(found, jax.jit(both)(x, kernel, d_outputs)):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        assert "conv_general_dilated" not in str(jax.make_jaxpr(both)(x, kernel, d_outputs))
    else:
        import torch

        leaves = [torch.from_numpy(one).requires_grad_() for one in (x, kernel)]
        outputs = convolve(*leaves)
        found = (outputs, *torch.autograd.grad(outputs, leaves, torch.from_numpy(d_outputs)))
    found = [keras.ops.convert_to_numpy(one) for one in found]
    np.savez(sys.argv[2], outputs=found[0], d_x=found[1], d_kernel=found[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["5×5", "3×3, stride 2, odd sizes"])
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(pytorch, backend, case, tmp_path):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    stride = CASES[case][-1]
    arrays = arrays_of(case)
    np.savez(tmp_path / "given.npz", **dict(zip(("x", "kernel", "d_outputs"), arrays, strict=True)), stride=stride)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "given.npz"), str(tmp_path / "found.npz")],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    found = np.load(tmp_path / "found.npz")
    expected = [np.asarray(one) for one in pytorch.call("layers:depthwise_convolution", *arrays, stride)]
    assert_close([found[name] for name in ("outputs", "d_x", "d_kernel")], expected)
