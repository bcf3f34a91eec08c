"""Activations by name, written of operations that every runtime has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def gelu(x: Any) -> Any:
    """Return x · Φ(x), exactly, as PyTorch computes it.

    On TensorFlow Keras computes it of the complementary error function, which ONNX does not have.

    Source:
        Hendrycks and Gimpel 2016, "Gaussian Error Linear Units (GELUs)", arXiv:1606.08415.
    """
    return 0.5 * x * (1 + ops.erf(x * math.sqrt(0.5)))


def activation_named(name: str) -> Callable[[Any], Any]:
    """Return an activation by its Keras name."""
    activation: Callable[[Any], Any] = gelu if name == "gelu" else keras.activations.get(name)
    return activation
