"""Batch normalisation folded into the convolutions before it: fewer passes over memory in inference."""

from __future__ import annotations

from typing import Any

from tfdetr_keras.models.backbone import EPSILON

CONVOLUTION, NORMALIZATION = "/convolution", "/normalization"


def folded_values(values: dict[str, Any]) -> dict[str, Any]:
    """The weights of a trunk without batch normalisation that computes what one with it computes in inference.

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
