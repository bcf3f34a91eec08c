"""Sums and counts over replicas, where the backend splits a batch between them."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def sum_over_replicas(value: Any) -> Any:
    """Add up a count over the replicas of a distribution strategy; outside of one, return the value itself.

    Under a `tf.distribute` strategy each replica computes on its part of the batch. On JAX a sharded batch is one
    array, whose sums are those of the whole batch anyway. No gradient flows through the sum.

    Args:
        value: a float tensor, or a structure of them; TensorFlow's gradients of embeddings, too.

    Returns:
        The same structure, equal on all replicas.
    """
    value = keras.tree.map_structure(ops.stop_gradient, value)
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    if not tf.distribute.in_cross_replica_context() and number_of_replicas() > 1:
        value = tf.nest.map_structure(tf.convert_to_tensor, value)  # dense, where it was tf.IndexedSlices
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)
    return value


def max_over_replicas(value: Any) -> Any:
    """Return the largest of a count over the replicas of a `tf.distribute` strategy; outside of one, the value itself.

    Strategies add up, and know no largest: each replica's count has a place of its own in the sum.

    Args:
        value: an int32 scalar, at least 0.
    """
    replicas = number_of_replicas()
    if replicas == 1:
        return value
    import tensorflow as tf

    own = tf.distribute.get_replica_context().replica_id_in_sync_group
    counts = sum_over_replicas(ops.cast(ops.one_hot(own, replicas, dtype="int32") * value, "float32"))
    return ops.cast(ops.max(counts), "int32")


def add_over_replicas(value: Any) -> Any:
    """Add up a float tensor over the replicas of a `tf.distribute` strategy, whose gradient goes to all of them.

    Outside of a strategy, and on other backends, return the value itself.
    """
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    if tf.distribute.in_cross_replica_context() or number_of_replicas() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def number_of_replicas() -> int:
    """Return how many replicas share a batch."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync
