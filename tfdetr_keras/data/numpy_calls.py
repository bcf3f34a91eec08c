"""Python functions inside a `tf.data` pipeline, called so that the process can still end.

`tf.data` runs ahead of the reader in threads of its own. A thread that asks for the interpreter during its shutdown
never comes back, and an iterator that is alive by then (after Ctrl-C, say) waits for it forever. So at exit the
functions refuse to work, which halts every pipeline, and the exit waits until the last call is over.

They refuse with `StopIteration`: for any other exception TensorFlow logs the traceback, once for each call that was
still to come, behind the one line that said why the program ends.
"""

import atexit
import contextlib
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import tensorflow as tf

QUIET_SECONDS = 0.1  # without a call, after which all pipelines have come to a halt

_state = SimpleNamespace(ending=False, last_call=0.0)


def numpy_call(function: Callable, inputs: Sequence[tf.Tensor], dtypes: Any) -> Any:
    """Call a function of numpy arrays inside the graph: `tf.numpy_function`, safe at exit.

    Args:
        function: takes the inputs as arrays, returns arrays (or one array) of `dtypes`.
        inputs: tensors.
        dtypes: one dtype or a list of them.

    Returns:
        The function's results as tensors of unknown shape.
    """

    @tf.autograph.experimental.do_not_convert
    def call(*arrays: Any) -> Any:
        _state.last_call = time.monotonic()
        if _state.ending:
            raise StopIteration
        return function(*arrays)

    return tf.numpy_function(call, inputs, dtypes)


@atexit.register
def _halt_pipelines() -> None:
    if not _state.last_call:
        return
    _state.ending = True
    _state.last_call = time.monotonic()
    while time.monotonic() - _state.last_call < QUIET_SECONDS:
        with contextlib.suppress(KeyboardInterrupt):  # of somebody who presses Ctrl-C twice
            time.sleep(QUIET_SECONDS / 10)
