"""Several processes that train one model together: how many there are, which one this is, and values from all of them.

On the JAX backend, after `jax.distributed.initialize`, each process reads its own part of every batch, and
`keras.distribution.DataParallel` makes one batch of the parts. On other backends there is one process.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np


def number_of_processes() -> int:
    """Return how many processes train the model."""
    if keras.backend.backend() != "jax":
        return 1
    import jax

    return jax.process_count()


def process_index() -> int:
    """Return the number of this process; 0 writes the files."""
    if keras.backend.backend() != "jax":
        return 0
    import jax

    return jax.process_index()


def gather(value: Any) -> list[Any]:
    """Return the values of all workers, in their order; each waits here for all others.

    Args:
        value: anything that can be pickled.
    """
    if number_of_processes() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    content = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = np.ravel(process_allgather(np.array([len(content)])))
    padded = np.pad(content, (0, int(sizes.max()) - len(content)))
    contents = np.reshape(process_allgather(padded), (len(sizes), -1))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(contents, sizes, strict=True)]


@contextlib.contextmanager
def by_this_worker_alone() -> Iterator[None]:
    """Let one worker make variables of its own; under a distribution, all workers otherwise make the same ones."""
    shared = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(shared)
