"""Splitting one set of records in two, for training and for validation."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.record import Reader, reader_of


def split(dataset: tf.data.Dataset, share: float, seed: int = 0) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Splits records by lot, the same way on every run: no record is in both parts, and none is lost.

    Args:
        dataset: of records, as a reader returns them.
        share: of the records that go to the second part, between 0 and 1; at least one record goes to each.
        seed: of the lots.

    Returns:
        The larger and the smaller part, for training and for validation. Images are read when a part is.

    Raises:
        ValueError: a share that is not between 0 and 1, fewer than two records, or a dataset that no reader made.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, not {share}: 20 % is 0.2")
    reader = reader_of(dataset)
    if reader is None:
        raise ValueError("the dataset must come straight from a reader, e.g. td.data.load_coco or td.data.from_dataset")
    count = int(reader.entries.cardinality())
    if count < 0:
        raise ValueError("the number of records is not known, so they cannot be split: split the files instead")
    if count < 2:
        raise ValueError(f"{count} records cannot be split in two")
    second = np.zeros(count, bool)
    second[np.random.default_rng(seed).permutation(count)[: min(max(round(share * count), 1), count - 1)]] = True
    return _part(reader, ~second), _part(reader, second)


def _part(reader: Reader, chosen: np.ndarray) -> tf.data.Dataset:
    table = tf.constant(chosen)
    entries = reader.entries.enumerate().filter(lambda place, _: table[place]).map(lambda _, entry: entry)
    entries = entries.apply(tf.data.experimental.assert_cardinality(int(chosen.sum())))
    return dataclasses.replace(reader, entries=entries).dataset()
