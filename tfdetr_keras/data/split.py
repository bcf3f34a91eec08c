"""Splitting one set of records in two, for training and for validation."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.record import Reader, reader_of

# Of ten images that are numbered one after another, a share of 0.2 takes exactly two.
BLOCK = 10
# Multiples of it fill [0, 1) evenly, wherever they begin and end, and fall into step with no period of the records.
GOLDEN = (5**0.5 - 1) / 2
_LAST_NUMBER = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)


def split(dataset: tf.data.Dataset, share: float, seed: int = 0) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Split records in two by lot, in the same way on every run: no record is in both parts, and none is lost.

    An image's part depends only on its name and the seed: adding or removing one moves no other. So the share is
    met on average, and nearly to the image where files are numbered. The name is the file's path from the folder of
    the set on; for records without files it is their place.

    Args:
        dataset: of records, as a reader returns them.
        share: of the records that go to the second part, between 0 and 1; at least one record goes to each part: an
            empty part gets the record of the nearest lot.
        seed: of the lots.

    Returns:
        The larger and the smaller part, for training and for validation. Images are read when a part is.

    Raises:
        ValueError: a share that is not between 0 and 1, fewer than two records, or a dataset that no reader made.
    """

    def chosen(reader: Reader, count: int) -> np.ndarray:
        names = [outline["name"] for outline in reader.outlines()]
        salt = f"lots {seed}/{reader.splits}".encode()
        if len(names) == count and all(names):
            lots = np.array([_lot(name, salt) for name in names])
        else:
            lots = (_random(salt, b"") + np.arange(count) * GOLDEN) % 1
        second = lots < share
        if not second.any():
            second[lots.argmin()] = True
        elif second.all():
            second[lots.argmax()] = False
        return second

    return _split(dataset, share, chosen)


def split_by_count(dataset: tf.data.Dataset, share: float, seed: int = 0) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Split records as `split` did in earlier versions: by places, all of which change with the number of records.

    Runs that were started with it are resumed with it. Arguments, results and errors are those of `split`.
    """

    def chosen(reader: Reader, count: int) -> np.ndarray:
        second = np.zeros(count, bool)
        second[np.random.default_rng(seed).permutation(count)[: min(max(round(share * count), 1), count - 1)]] = True
        return second

    return _split(dataset, share, chosen)


def _split(
    dataset: tf.data.Dataset, share: float, chosen: Callable[[Reader, int], np.ndarray]
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
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
    second = chosen(reader, count)
    return _part(reader, ~second), _part(reader, second)


def _lot(name: bytes, salt: bytes) -> float:
    """Return a number in [0, 1) that a name draws.

    Names with numbers draw by tens: ten numbers in a row get the ten tenths of [0, 1), in an order drawn for these ten,
    and a place in their tenth. However the numbers lie, each name's lot is equally likely to be anywhere.
    """
    text = name.decode("utf-8", "surrogateescape")
    own = _random(salt, name)
    found = _LAST_NUMBER.fullmatch(text)
    if found is None:
        return own
    before, number, after = found.groups()
    block, place = divmod(int(number), BLOCK)
    drawn = _digest(salt, f"{before}{block}/{len(number)}{after}".encode("utf-8", "surrogateescape"))
    tickets = [drawn[4 * one : 4 * one + 4] for one in range(BLOCK)]
    return (sum(ticket < tickets[place] for ticket in tickets) + own) / BLOCK


def _random(salt: bytes, name: bytes) -> float:
    return (int.from_bytes(_digest(salt, name)[:7]) >> 3) / 2**53


def _digest(salt: bytes, name: bytes) -> bytes:
    return hashlib.blake2b(name, key=hashlib.blake2b(salt, digest_size=32).digest(), digest_size=4 * BLOCK).digest()


def _part(reader: Reader, chosen: np.ndarray) -> tf.data.Dataset:
    table = tf.constant(chosen)
    entries = reader.entries.enumerate().filter(lambda place, _: table[place]).map(lambda _, entry: entry)
    entries = entries.apply(tf.data.experimental.assert_cardinality(int(chosen.sum())))
    return dataclasses.replace(reader, entries=entries, splits=reader.splits + 1).dataset()
