"""How fast the machine multiplies: the product of two large float32 matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MATRIX = 3072  # side of the matrices


def product(framework: str = "tensorflow") -> Callable[[], np.ndarray]:
    """A function that takes `MATRIX` ** 3 multiplications, in TensorFlow or in torch."""
    matrix = np.random.default_rng(0).normal(size=(MATRIX, MATRIX)).astype(np.float32)
    if framework == "torch":
        import torch

        ours = torch.from_numpy(matrix)
        return lambda: torch.mm(ours, ours).numpy()
    import tensorflow as tf

    constant = tf.constant(matrix)
    return lambda: tf.linalg.matmul(constant, constant).numpy()
