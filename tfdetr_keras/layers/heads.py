"""The heads, which turn an object embedding into logits of classes and into a box (DETR, section 3.2).

Members in which every class is a sigmoid start with a low probability for each, and those whose boxes are told from a
reference with the reference itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import initializers, layers, ops

from tfdetr_keras.layers.mlp import MLP, linear_initializers

PRIOR_PROBABILITY = 0.01  # of each class before training (Lin et al. 2017, "Focal Loss", section 3.3)
REFERENCE_EPSILON = 1e-5  # what a coordinate keeps from 0 and 1 when it is turned back into a logit


def class_head(d_model: int, num_logits: int, prior: float | None = None, **kwargs: Any) -> layers.Dense:
    """Make the head for classes.

    Args:
        d_model: width of the embeddings.
        num_logits: of each query.
        prior: probability of each class to start with, where each is a sigmoid; None for a bias drawn as PyTorch does.
        **kwargs: `name` and `dtype`.
    """
    start = linear_initializers(d_model)
    if prior is not None:
        start["bias_initializer"] = initializers.Constant(math.log(prior / (1 - prior)))
    return layers.Dense(num_logits, **start, **kwargs)


class BoxHead(MLP):
    """Three dense layers and a sigmoid: an object embedding to a relative box (DETR, section 3.2, "FFNs").

    Args:
        d_model: width of the embeddings.
        zero_output: whether it starts by giving each object the same box, the one of its offset.
        size_logit: with `zero_output`, the logit of width and height to start with.
        **kwargs: of `MLP`.
    """

    def __init__(self, d_model: int, zero_output: bool = False, size_logit: float = 0.0, **kwargs: Any) -> None:
        super().__init__(d_model, (d_model, d_model, 4), zero_output, **kwargs)
        if size_logit:
            self.stack[-1].bias_initializer = initializers.Constant([0.0, 0.0, size_logit, size_logit])

    def call(self, inputs: Any, offset: Any = None) -> Any:
        """Map `(…, d_model)` → `(…, 4)` cxcywh in [0, 1]; `offset` `(…, 4)` is added before the sigmoid."""
        boxes = self.change(inputs)
        return ops.sigmoid(boxes if offset is None else boxes + offset)

    def change(self, inputs: Any) -> Any:
        """Map `(…, d_model)` → `(…, 4)`, what is added to the logits of a reference."""
        return super().call(inputs)


def inverse_sigmoid(x: Any) -> Any:
    """Return the logits of coordinates in [0, 1], which are kept a little away from both ends."""
    return ops.log(ops.maximum(x, REFERENCE_EPSILON) / ops.maximum(1 - x, REFERENCE_EPSILON))


class HeadOfEachLayer(layers.Layer):
    """The heads of one kind of all decoder layers: one each, or one for all.

    Args:
        stack: the heads, called `layer0`, `layer1`, …
        d_model: width of the embeddings.
    """

    def __init__(self, stack: Sequence[layers.Layer], d_model: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stack, self.d_model = list(stack), d_model

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, queries, d_model)`."""
        for head in self.stack:
            head.build((None, None, self.d_model))

    def of(self, index: int) -> layers.Layer:
        """Return the head of a decoder layer."""
        return self.stack[min(index, len(self.stack) - 1)]
