"""Attention of given scores on the backend of this process, and what a float64 softmax makes of the same scores.

Run as a program, with the names of modules that are not there, it does so for every case and prints the deviations as
one line of JSON: one process a backend.
"""

import functools
import json
import math
import sys

if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(sys.argv[1:]))  # None: whoever imports it gets a ModuleNotFoundError

import keras
import numpy as np

from tfdetr_keras.layers.attention import LARGEST, MultiHeadAttention

WIDTH = QUERIES = 16  # a query is one-hot, so that its scores are a row of the keys; 1 / sqrt(16) is exact
BATCH, HEADS, KEYS = 4, 2, 24
KEPT = (24, 13, 1, 0)  # keys of each image that are not padding
EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
HIGHEST = ("1", "1e4", "1e9", "a tenth of the largest")
PATHS = ("plain", "narrow values", "scores")


def largest(dtype, highest):
    """The largest absolute score of a case, None if the dtype does not hold it."""
    limit = LARGEST[dtype] / 10
    value = limit if highest.startswith("a tenth") else float(highest)
    return value if value <= limit else None


def case(dtype, highest):
    """Keys, values and a gradient of the outputs, as numbers that the dtype holds exactly.

    Padding has the highest scores, and an image the lowest in its first query; in its second all are equal; others
    lie close to each other or spread over the whole range.
    """
    rng = np.random.default_rng(7)
    scores = rng.uniform(-highest, highest, (BATCH, HEADS, QUERIES, KEYS))
    scores[:, :, 4:8] = rng.uniform(-1, 1, (BATCH, HEADS, 4, KEYS)) * min(highest, 3)
    scores[:, :, 0] = -highest
    scores[:, :, 1] = highest
    scores[:, :, 2] = -highest * (1 - rng.uniform(0, 0.1, KEYS))
    for image, kept in enumerate(KEPT):
        scores[image, :, :3, kept:] = highest
    keys = _held(scores * math.sqrt(WIDTH), dtype).transpose(0, 3, 1, 2)  # (batch, keys, heads, channels)
    values = _held(rng.normal(size=(BATCH, KEYS, HEADS, WIDTH)), dtype)
    gradient = _held(rng.normal(size=(BATCH, QUERIES, HEADS, WIDTH)), dtype)
    return keys, values, gradient


def _held(numbers, dtype):
    """The numbers as the dtype holds them, in float64."""
    return keras.ops.convert_to_numpy(keras.ops.cast(numbers.astype("float32"), dtype)).astype("float64")


def exact(keys, values, gradient):
    """Outputs, gradients of queries, keys and values in float64; of padding alone, the mean of the values and 0."""
    keys, values, gradient = (array.transpose(0, 2, 1, 3) for array in (keys, values, gradient))
    scores = keys.swapaxes(2, 3) / math.sqrt(WIDTH)  # (batch, heads, queries, keys)
    kept = np.arange(KEYS) < np.array(KEPT)[:, None, None, None]
    alone = np.array(KEPT)[:, None, None, None] == 0
    masked = np.where(alone, 0, np.where(kept, scores, -np.inf))
    weights = np.exp(masked - masked.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    d_weights = gradient @ values.swapaxes(2, 3)
    d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True)) * ~alone / math.sqrt(WIDTH)
    d_queries, d_keys = d_scores @ keys, d_scores.swapaxes(2, 3)
    results = (weights @ values, d_queries, d_keys, weights.swapaxes(2, 3) @ gradient)
    return [result.transpose(0, 2, 1, 3) for result in results]


def found(dtype, path, keys, values, gradient, compiled=False):
    """The same by our layer on this backend."""
    queries = np.broadcast_to(np.eye(WIDTH)[:, None], (BATCH, QUERIES, HEADS, WIDTH))
    arrays = [keras.ops.cast(array.astype("float32"), dtype) for array in (queries, keys, values, gradient)]
    outputs = [keras.ops.convert_to_numpy(array) for array in _attention(dtype, path, compiled)(*arrays)]
    return [output.astype("float64") for output in outputs]


@functools.cache  # what JAX compiles serves all cases of a dtype
def _attention(dtype, path, compiled):
    """A function of queries, keys, values and a gradient: outputs and the gradients of the three."""
    layer = MultiHeadAttention(HEADS, WIDTH, dtype=dtype)
    layer.build(*[(None, None, HEADS * WIDTH)] * 3)
    mask = keras.ops.convert_to_tensor((np.arange(KEYS) < np.array(KEPT)[:, None])[:, None])

    def attend(*inputs):
        return layer.attend(*inputs, mask, return_attention_scores=path == "scores")[0]

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def run(*arrays):
            *inputs, gradient = arrays
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = attend(*inputs)
            return outputs, *tape.gradient(outputs, inputs, output_gradients=gradient)

        return tf.function(run, jit_compile=True) if compiled else run
    if backend == "jax":
        import jax

        def run(*arrays):
            *inputs, gradient = arrays
            outputs, back = jax.vjp(attend, *inputs)
            return outputs, *back(gradient)

        return run if dtype == "float16" else jax.jit(run)  # a CPU compiles no products of float16 into float32

    def run(*arrays):
        *inputs, gradient = [array.detach().requires_grad_() for array in arrays]
        outputs = attend(*inputs)
        outputs.backward(gradient.detach())
        return outputs.detach(), *(array.grad for array in inputs)

    return run


def deviations(dtype, highest, path, compiled=False):
    """How far outputs and gradients of a case are from exact ones, in roundings of the largest number in a sum."""
    keys, values, gradient = case(dtype, largest(dtype, highest))
    if path == "narrow values":
        values, gradient = values[..., : WIDTH // 2], gradient[..., : WIDTH // 2]
    results = found(dtype, path, keys, values, gradient, compiled)
    # An output is a mean of values, a gradient of keys a product of such a mean and a query; of queries, of a key.
    width = values.shape[-1]
    of_scores = np.abs(values).max() * np.abs(gradient).max() * width / math.sqrt(WIDTH)
    scales = (1, of_scores * np.abs(keys).max(), of_scores, np.abs(gradient).max())
    names = ("outputs", "d_queries", "d_keys", "d_values")
    return {
        name: float(np.abs(got - wanted).max() / (scale * EPSILON[dtype]))
        for name, got, wanted, scale in zip(names, results, exact(keys, values, gradient), scales, strict=True)
    }


def cases():
    """Each dtype, highest score that it holds, and way through the layer."""
    return [
        (dtype, highest, path)
        for dtype in EPSILON
        for highest in HIGHEST
        for path in PATHS
        if largest(dtype, highest) is not None
    ]


if __name__ == "__main__":
    print(json.dumps([deviations(*each) for each in cases()]))
