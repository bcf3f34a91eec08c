"""The embedding of the classes that denoising queries claim (DN-DETR, arXiv:2203.01305, section 4)."""

from __future__ import annotations

from typing import Any

import keras
from keras import initializers, layers, ops


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class NormalButLast(initializers.Initializer):
    """Rows drawn from a standard normal distribution, the last one zeros."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Draw `(rows, channels)`."""
        drawn = keras.random.normal((shape[0] - 1, *shape[1:]), dtype=dtype)
        return ops.concatenate([drawn, ops.zeros((1, *shape[1:]), dtype=drawn.dtype)])


class ClassEmbedding(layers.Embedding):
    """A vector for each class, and one for padding, the last, which no gradient changes.

    Args:
        num_classes: real classes.
        d_model: channels.
        **kwargs: `name` and `dtype`.
    """

    def __init__(self, num_classes: int, d_model: int, **kwargs: Any) -> None:
        super().__init__(num_classes + 1, d_model, embeddings_initializer=NormalButLast(), **kwargs)

    def call(self, labels: Any) -> Any:
        """Map `(batch, slots)` int, the number of classes for padding, → `(batch, slots, d_model)`."""
        embedded = super().call(labels)
        is_padding = ops.equal(labels, self.input_dim - 1)[..., None]
        return ops.where(is_padding, ops.stop_gradient(embedded), embedded)
