"""Warnings of images with more objects than a model has queries: the surplus can never be found."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import name_of
from tfdetr_keras.training.fingerprint import UNKNOWN, outlines_of

logger = logging.getLogger(__name__)


def tell_crowded_images(records: tf.data.Dataset, num_queries: int) -> bool:
    """Warn of the images that have more objects than the model has queries.

    Args:
        records: of one set.
        num_queries: of the model.

    Returns:
        Whether the reader knows its records without reading the images. Drawn shapes, which are for experiments, are
        known, but not how many objects they have; there is no warning of them.
    """
    images = crowded = 0
    fullest: dict[str, Any] = {"objects": num_queries}
    for outline in outlines_of(records):
        images += 1
        if outline["objects"] == UNKNOWN:
            continue
        crowded += outline["objects"] > num_queries
        fullest = max(fullest, outline, key=lambda one: one["objects"])
    if crowded:
        _warn(
            f"{crowded} of {images} images have", name_of(records, fullest["image_id"]), fullest["objects"], num_queries
        )
    return images > 0


def watch_crowding(batches: tf.data.Dataset, num_queries: int) -> tf.data.Dataset:
    """Return the same batches, and warn of the first image in one of them with more objects than queries.

    Args:
        batches: as `prepare` returns them.
        num_queries: of the model.
    """
    told: list[int] = []

    def look(labels: np.ndarray, image_ids: np.ndarray) -> np.bool_:
        counts = (labels >= 0).sum(axis=1)
        if not told and counts.max(initial=0) > num_queries:
            told.append(int(image_ids[counts.argmax()]))
            _warn("an image has", name_of(batches, told[0]), int(counts.max()), num_queries)
        return np.True_

    def pass_on(inputs: Any, targets: Any) -> Any:
        looked = numpy_call(look, [targets["labels"], targets["image_id"]], tf.bool)
        with tf.control_dependencies([looked]):
            return tf.nest.map_structure(tf.identity, (inputs, targets))

    return batches.map(pass_on)


def _warn(many: str, name: str, objects: int, num_queries: int) -> None:
    logger.warning(
        "%s more objects than the model has queries, %s has %d of %d: those beyond are never found, and which ones are "
        "learnt is left to chance; raise num_queries (--num-queries)",
        many,
        name,
        objects,
        num_queries,
    )
