"""Layers whose weights are never trained, whatever is made trainable around them."""

from __future__ import annotations

from typing import Any

from keras import layers


class UntrainedDense(layers.Dense):
    """A dense layer of weights that only a checkpoint changes."""

    @property
    def trainable(self) -> bool:
        """False."""
        return False

    @trainable.setter
    def trainable(self, value: bool) -> None:
        layers.Layer.trainable.fset(self, False)

    def build(self, input_shape: Any) -> None:
        """Create the weights."""
        super().build(input_shape)
        self.trainable = False
