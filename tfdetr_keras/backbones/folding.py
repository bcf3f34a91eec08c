"""Batch normalisation folded into the convolutions before it: fewer passes over memory in inference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from keras import ops

from tfdetr_keras.layers.batch_norm import EPSILON

CONVOLUTION, NORMALIZATION = "/convolution", "/normalization"
POINTWISE, DENSE = "/pointwise/convolution/", "/dense/convolution/"  # the branches of a RepVGG block


def folded_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return weights without batch normalisation that compute in inference what those with it compute.

    y = γ (w ∗ x − μ) / √(σ² + ε) + β is the convolution (γ / √(σ² + ε) w) ∗ x with bias β − γ μ / √(σ² + ε),
    computed in float64.

    Args:
        values: NumPy arrays by the path of their variable. A pair `…/convolution/kernel` and `…/normalization/gamma`,
            `beta`, `moving_mean`, `moving_variance` becomes `…/convolution/kernel` and `bias`; of a RepVGG block's two
            branches the folded ones are added up; all others stay.
    """
    statistics = f"{NORMALIZATION}/moving_mean"  # which other normalisations have none of
    places = [path.removesuffix(statistics) for path in values if path.endswith(statistics)]
    of_batches = tuple(f"{place}{NORMALIZATION}/" for place in places)
    folded = {path: value for path, value in values.items() if not path.startswith(of_batches)}
    for place in places:
        gamma, beta, mean, variance = (
            values[f"{place}{NORMALIZATION}/{name}"].astype("float64")
            for name in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        scale = gamma / (variance + EPSILON) ** 0.5
        # (height, width, inputs, outputs); of a depthwise convolution (height, width, channels, 1).
        kernel = values[f"{place}{CONVOLUTION}/kernel"]
        factor = scale if kernel.shape[-1] == len(scale) else scale[:, None]
        folded[f"{place}{CONVOLUTION}/kernel"] = (kernel * factor).astype(kernel.dtype)
        folded[f"{place}{CONVOLUTION}/bias"] = (beta - mean * scale).astype(kernel.dtype)
    for path in [path for path in folded if path.endswith(f"{POINTWISE}kernel")]:
        block = path.removesuffix(f"{POINTWISE}kernel")
        if f"{block}{DENSE}bias" not in folded:
            continue  # its name is all that it shares with one
        # Of the 3×3 kernel, the one in the middle looks at the pixel itself.
        kernel = folded[f"{block}{DENSE}kernel"].copy()
        kernel[1, 1] += folded.pop(path)[0, 0]
        folded[f"{block}{DENSE}kernel"] = kernel
        folded[f"{block}{DENSE}bias"] = folded[f"{block}{DENSE}bias"] + folded.pop(f"{block}{POINTWISE}bias")
    return folded


class FoldedParts:
    """A model's parts with batch normalisation folded, for inference with a model that is still being trained.

    Args:
        model: a detector that is not folded.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._parts: dict[str, Any] = model.normalized_parts(model.config.folded())
        for part in self._parts.values():
            part.build((None, None, None, 3))
        self._own = {
            f"{name}/{_inside(variable, name)}": variable
            for name in self._parts
            for variable in getattr(model, name).weights
        }
        self._sums: list[Any] = []

    @property
    def variables(self) -> list[Any]:
        """The folded kernels and biases, and what else is in these parts."""
        return [variable for part in self._parts.values() for variable in part.variables]

    def follow(self) -> None:
        """Fold again if the model's own parts have changed since the last time.

        They are compared by the sums of their weights along their first and their last axes, which takes some
        hundredths of the time of a forward pass: weights change in many ways, and no backend tells of all.
        """
        sums = _sums([variable.value for variable in self._own.values()])
        if len(self._sums) != len(sums) or any(
            not ops.all(ops.equal(new, old)) for new, old in zip(sums, self._sums, strict=True)
        ):
            values = folded_values({path: ops.convert_to_numpy(variable) for path, variable in self._own.items()})
            for name, part in self._parts.items():
                for variable in part.weights:
                    variable.assign(values[f"{name}/{_inside(variable, name)}"])
            self._sums = sums

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with these parts: while a graph of it is traced, or eagerly."""
        own = {name: getattr(self._model, name) for name in self._parts}
        # Past Keras, which would take them for new parts of the model.
        self._model.__dict__.update(self._parts)
        try:
            yield
        finally:
            self._model.__dict__.update(own)


def _inside(variable: Any, part: str) -> str:
    """Return the path of a variable within the part that it is in."""
    return str(variable.path).split(f"{part}/", 1)[1]


def _sums(values: list[Any]) -> list[Any]:
    """Return each array's sums along its last axis and along all others, in two long vectors."""
    flat = [ops.reshape(ops.cast(value, "float32"), (-1, value.shape[-1])) for value in values]
    return [ops.concatenate([ops.sum(one, axis=axis) for one in flat]) for axis in (0, 1)]
