"""Batch normalisation folded into the convolutions before it: fewer passes over memory in inference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from keras import ops

from tfdetr_keras.layers.batch_norm import EPSILON

CONVOLUTION, NORMALIZATION = "/convolution", "/normalization"


def folded_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return weights without batch normalisation that compute in inference what those with it compute.

    y = γ (w ∗ x − μ) / √(σ² + ε) + β is the convolution (γ / √(σ² + ε) w) ∗ x with bias β − γ μ / √(σ² + ε),
    computed in float64.

    Args:
        values: NumPy arrays by the path of their variable. A pair `…/convolution/kernel` and `…/normalization/gamma`,
            `beta`, `moving_mean`, `moving_variance` becomes `…/convolution/kernel` and `bias`; all others stay.
    """
    folded = {path: value for path, value in values.items() if f"{NORMALIZATION}/" not in path}
    for path in [path for path in values if path.endswith(f"{NORMALIZATION}/gamma")]:
        place = path.removesuffix(f"{NORMALIZATION}/gamma")
        gamma, beta, mean, variance = (
            values[f"{place}{NORMALIZATION}/{name}"].astype("float64")
            for name in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        scale = gamma / (variance + EPSILON) ** 0.5
        kernel = values[f"{place}{CONVOLUTION}/kernel"]  # (height, width, inputs, outputs)
        folded[f"{place}{CONVOLUTION}/kernel"] = (kernel * scale).astype(kernel.dtype)
        folded[f"{place}{CONVOLUTION}/bias"] = (beta - mean * scale).astype(kernel.dtype)
    return folded


class FoldedBackbone:
    """A model's backbone with batch normalisation folded, for inference with a model that is still being trained.

    Args:
        model: a detector whose backbone is not folded.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._backbone = model.config.backbone.folded().make(name="backbone", dtype=model.dtype_policy)
        self._backbone.build((None, None, None, 3))
        self._sums: list[Any] = []

    @property
    def variables(self) -> list[Any]:
        """The folded kernels and biases."""
        return self._backbone.variables

    def follow(self) -> None:
        """Fold again if the model's own backbone has changed since the last time.

        The backbone is compared by the sums of its weights along their first and their last axes, which takes some
        hundredths of the time of a forward pass: weights change in many ways, and no backend tells of all.
        """
        weights = self._model.backbone.weights
        sums = _sums([variable.value for variable in weights])
        if len(self._sums) != len(sums) or any(
            not ops.all(ops.equal(new, old)) for new, old in zip(sums, self._sums, strict=True)
        ):
            values = folded_values({_inside(variable): ops.convert_to_numpy(variable) for variable in weights})
            for variable in self._backbone.weights:
                variable.assign(values[_inside(variable)])
            self._sums = sums

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with this backbone: while a graph of it is traced, or eagerly."""
        own = self._model.backbone
        # Past Keras, which would take it for a new part of the model.
        self._model.__dict__["backbone"] = self._backbone
        try:
            yield
        finally:
            self._model.__dict__["backbone"] = own


def _inside(variable: Any) -> str:
    """Return the path of a backbone's variable within it."""
    return "/" + variable.path.split("backbone/", 1)[1]


def _sums(values: list[Any]) -> list[Any]:
    """Return each array's sums along its last axis and along all others, in two long vectors."""
    flat = [ops.reshape(ops.cast(value, "float32"), (-1, value.shape[-1])) for value in values]
    return [ops.concatenate([ops.sum(one, axis=axis) for one in flat]) for axis in (0, 1)]
