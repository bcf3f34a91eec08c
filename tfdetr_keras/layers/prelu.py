"""PReLU with one slope for all channels, as PyTorch has it by default and as DAB-DETR trains it.

Source:
    He et al. 2015, "Delving Deep into Rectifiers", arXiv:1502.01852, section 2.1, the "channel-shared" variant.
"""

from __future__ import annotations

from typing import Any

from keras import initializers, layers, ops

SLOPE = 0.25  # before training


class PReLU(layers.Layer):
    """Leave what is positive as it is, and multiply the rest by a slope that is learned."""

    def build(self, input_shape: Any) -> None:
        """Create the slope, `(1,)`."""
        self.slope = self.add_weight(shape=(1,), initializer=initializers.Constant(SLOPE), name="slope")

    def call(self, inputs: Any) -> Any:
        """Map an array of any shape to one of the same shape."""
        return ops.where(inputs > 0, inputs, self.slope * inputs)
