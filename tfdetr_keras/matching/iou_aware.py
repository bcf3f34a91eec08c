"""The IoU-aware loss of each query, as one pass over the logits, and one more back.

Groups of queries have so many logits that the time of a loss is that of its passes over them. Written out, there are
some twenty, each with an array of its own; here the compiler joins them, and only the logits are kept for the way back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from keras import ops

from tfdetr_keras.backend.compiler import compiled


def iou_aware_losses(
    logits: Any, classes: Any, quality: Any, class_weights: Any, alpha: float, gamma: float, least: float
) -> Any:
    """Return the loss of each query, summed over its classes.

    Σ w(c)·(−t log p − v log(1 − p)), for the query's class t = max(pᵅ IoU^(1 − α), least) and v = 1 − t, for all others
    t = 0 and v = pᵞ; no gradient flows through t, nor through the v of the query's class.

    Args:
        logits: `(batch, layers, queries, classes)` float32.
        classes: `(batch, layers, queries)` int32, the query's class, or the number of classes for none.
        quality: `(batch, layers, queries)` float32, the IoU of the query's box and its object's.
        class_weights: `(classes,)` float32.
        alpha: share of the probability in t.
        gamma: exponent of v.
        least: of t.

    Returns:
        `(batch, layers, queries)` float32.

    Source:
        Chen et al. 2024, "LW-DETR", arXiv:2406.03459, section 3.1.
    """
    # As floats, since not every backend takes whole numbers into a function with a gradient of its own.
    return _function(alpha, gamma, least)(logits, ops.cast(classes, "float32"), quality, class_weights)


@functools.cache
def _function(alpha: float, gamma: float, least: float) -> Callable[..., Any]:
    def target_of(logits: Any, classes: Any, quality: Any) -> Any:
        own = ops.minimum(ops.cast(classes, "int32"), logits.shape[-1] - 1)[..., None]
        probability = ops.sigmoid(ops.take_along_axis(logits, own, axis=-1))
        return ops.maximum(probability**alpha * ops.maximum(quality, 0.0)[..., None] ** (1 - alpha), least)

    def is_own(logits: Any, classes: Any) -> Any:
        return classes[..., None] == ops.arange(logits.shape[-1], dtype="float32")

    @compiled
    def forward(logits: Any, classes: Any, quality: Any, class_weights: Any) -> Any:
        # −log p = softplus(x) − x and −log(1 − p) = softplus(x), which stay finite where p rounds to 0 or 1.
        probability, softplus = _sigmoid_and_softplus(logits)
        of_own = softplus - target_of(logits, classes, quality) * logits
        losses = ops.where(is_own(logits, classes), of_own, probability**gamma * softplus)
        return ops.sum(class_weights * losses, axis=-1)

    @compiled
    def backward(logits: Any, classes: Any, quality: Any, class_weights: Any, d_losses: Any) -> Any:
        probability, softplus = _sigmoid_and_softplus(logits)
        of_own = probability - target_of(logits, classes, quality)
        of_others = gamma * (1 - probability) * softplus + probability
        d_logits = ops.where(is_own(logits, classes), of_own, probability**gamma * of_others)
        return d_losses[..., None] * class_weights * d_logits

    @ops.custom_gradient
    def losses(logits: Any, classes: Any, quality: Any, class_weights: Any) -> tuple[Any, Any]:
        def gradient(*arguments: Any, upstream: Any = None) -> tuple[Any, ...]:
            # PyTorch's backend gives the arguments of the function and, by name, the gradient; the others that alone.
            d_losses = arguments[0] if upstream is None else upstream
            d_logits = backward(logits, classes, quality, class_weights, d_losses)
            return d_logits, ops.zeros_like(classes), ops.zeros_like(quality), ops.zeros_like(class_weights)

        return forward(*map(ops.stop_gradient, (logits, classes, quality, class_weights))), gradient

    return losses


def _sigmoid_and_softplus(x: Any) -> tuple[Any, Any]:
    """Return both to within float32's rounding, from one exponential and no logarithm: half of the time of a loss.

    softplus(x) = max(x, 0) + log(1 + e), e = exp(−|x|), and log(1 + e) = 2 artanh(z) = 2 (z + z³/3 + z⁵/5 + …) with
    z = e / (2 + e), which is at most 1/3.
    """
    exponential = ops.exp(-ops.abs(x))
    z = exponential / (2 + exponential)
    square, series = z * z, 1 / 13
    for odd in (11, 9, 7, 5, 3, 1):
        series = 1 / odd + square * series
    return ops.where(x >= 0, 1.0, exponential) / (1 + exponential), ops.maximum(x, 0) + 2 * z * series
