"""The losses of boxes whose sides are distributions, and the union of matchings that all layers learn from (D-FINE).

Source:
    Peng et al. 2024, "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement",
    arXiv:2410.13842, sections 4.1 and 4.2; what a target of a query is, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from tfdetr_keras.layers.distance_bins import neighbouring_bins


def union_of_matchings(matchings: Sequence[Any], num_queries: Any) -> Any:
    """Return the object of each query in the union of several matchings.

    It is the one that the most of them give the query; among equally frequent ones, which the authors leave open, the
    one of the lowest row. So an object may have several queries.

    Args:
        matchings: `(batch, layers, objects)` int32 each, the query of each object, −1 = none.
        num_queries: of an image.

    Returns:
        `(batch, queries)` int32, the row of the object; the number of rows for none.

    Source:
        D-FINE, section 4.2 ("Global Optimal Localization Self-Distillation").
    """
    votes = sum(ops.sum(ops.one_hot(queries, num_queries, dtype="int32"), axis=1) for queries in matchings)
    votes = ops.pad(votes, [[0, 0], [0, 1], [0, 0]])  # there may be no rows
    most = ops.cast(ops.argmax(votes, axis=1), "int32")
    return ops.where(ops.max(votes, axis=1) > 0, most, ops.shape(votes)[1] - 1)


def localization_losses(logits: Any, distances: Any, values: Any) -> Any:
    """Return the cross-entropy of a query's sides and the true distances, summed over the sides.

    A distance is shared by the two bins between which it lies, so that their mean is the distance.

    Args:
        logits: `(…, 4, bins + 1)` float32.
        distances: `(…, 4)` float32, the true ones; leading axes may be 1.
        values: `(bins + 1,)` float32, the bins' distances.

    Returns:
        `(…)` float32.

    Source:
        D-FINE, section 4.1, the fine-grained localization loss.
    """
    lower, share = neighbouring_bins(distances, values)
    share, size = ops.expand_dims(share, -1), values.shape[0]
    wanted = (1.0 - share) * ops.one_hot(lower, size) + share * ops.one_hot(lower + 1, size)
    return -ops.sum(wanted * ops.log_softmax(logits, axis=-1), axis=(-2, -1))


def distillation_losses(logits: Any, teacher: Any, temperature: float) -> Any:
    """Return the divergence of a query's sides from the teacher's, the mean over the sides.

    It is T² KL(softmax(teacher / T) ‖ softmax(logits / T)); no gradient flows to the teacher.

    Args:
        logits: `(…, 4, bins + 1)` float32.
        teacher: likewise; leading axes may be 1.
        temperature: T.

    Returns:
        `(…)` float32.

    Source:
        D-FINE, section 4.2, the decoupled distillation focal loss.
    """
    wanted = ops.log_softmax(ops.stop_gradient(teacher) / temperature, axis=-1)
    found = ops.log_softmax(logits / temperature, axis=-1)
    return temperature**2 * ops.mean(ops.sum(ops.exp(wanted) * (wanted - found), axis=-1), axis=-1)
