"""Compilation of functions written in `keras.ops` by the backend they run on."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

SMALLEST_STEP = 8
_leaves_plain = contextvars.ContextVar("leaves_plain", default=False)


@contextlib.contextmanager
def left_plain() -> Iterator[None]:
    """Leave compiled functions that are called or traced within as they are written.

    For converters of graphs that cannot look into a compiled function, as tf2onnx.
    """
    token = _leaves_plain.set(True)
    try:
        yield
    finally:
        _leaves_plain.reset(token)


def compiles() -> bool:
    """Return whether `compiled` compiles here, rather than leaving functions as they are written."""
    return keras.backend.backend() != "torch" and not _leaves_plain.get()


def is_for_xla() -> bool:
    """Return whether what is called or traced now is compiled by XLA.

    On TensorFlow, whether it becomes a part of a function with `jit_compile=True`, however deep in it; but a plain
    function that was traced by itself keeps what it was told then. On JAX, always.
    """
    if keras.backend.backend() != "tensorflow":
        return keras.backend.backend() == "jax"
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util  # there is no public way to ask

    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def is_for_xla_on_cpu() -> bool:
    """Return whether XLA compiles what is called or traced now, and there is nothing but a CPU to run it on.

    Not within `left_plain`.
    """
    return compiles() and is_for_xla() and all(one.startswith("cpu") for one in keras.distribution.list_devices())


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of tensors with the backend's compiler, on its first call.

    On TensorFlow the function becomes `tf.function(jit_compile=True)`: compiled by XLA wherever it is called from, be
    it eager code, the plain graph that `fit` builds on a CPU, a replica of a distribution strategy, or a function that
    is itself compiled, of which it then becomes a part. On JAX it becomes `jax.jit`. On PyTorch it is left unchanged: a
    loop whose length depends on the data breaks that compiler's graphs. Within `left_plain` it is unchanged, too.

    Sizes unknown while a TensorFlow graph is traced become known when XLA compiles it, once for each new set of shapes.
    Arguments are tensors or None.

    Args:
        function: of tensors, written in `keras.ops`, without side effects and without variables.

    Returns:
        A function of the same arguments and results.
    """

    @functools.cache
    def compile_once() -> Callable[..., Any]:
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            return tf.function(function, jit_compile=True, autograph=False)
        if keras.backend.backend() == "jax":
            import jax

            return jax.jit(function)
        return function

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments) if _leaves_plain.get() else compile_once()(*arguments)

    return call


def one_of_few_sizes(size: Any) -> Any:
    """Round up a size that is unknown until run time, since a function is compiled anew for each.

    Args:
        size: an int32 scalar.

    Returns:
        A multiple of a 16th of the next power of two, and of 8 at least: larger by an eighth at most, and so that there
        are no more than 8 sizes from one power of two to the next.
    """
    filled = size
    for shift in (1, 2, 4, 8, 16):  # all bits below the highest: the next power of two less one
        filled = ops.bitwise_or(filled, ops.right_shift(filled, shift))
    step = ops.maximum((filled + 1) // 16, SMALLEST_STEP)
    # No remainders of negative numbers, which have another sign in ONNX.
    return ops.maximum((size + step - 1) // step * step, step)
