"""A run's record of its data, to detect later changes: names, numbers and annotations, no pixels."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.record import reader_of, readers_of

logger = logging.getLogger(__name__)

UNKNOWN = -1  # objects


@dataclass(frozen=True)
class Fingerprint:
    """The properties of a set of records that are known without decoding an image.

    Attributes:
        images: the number of records, unreadable ones included.
        objects: the number of objects to be found; None if only reading the images would tell.
        names: a checksum over the images' names and ids, in their order; None if a reader does not know them.
        annotations: a checksum over boxes and labels, in the same order; None likewise.
    """

    images: int
    objects: int | None = None
    names: str | None = None
    annotations: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the attributes as a dictionary, for a file."""
        return asdict(self)

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> Fingerprint:
        """Return the fingerprint that `as_json` wrote; missing entries are unknown."""
        return cls(**{name: content.get(name) for name in cls.__dataclass_fields__})  # type: ignore[arg-type]

    def differences(self, before: Fingerprint) -> list[str]:
        """Return in words how the records differ from earlier ones; unknown properties are not compared."""
        known = {name: (value, getattr(before, name)) for name, value in asdict(self).items()}
        differ = [name for name, pair in known.items() if None not in pair and pair[0] != pair[1]]
        told = [f"{known[name][0]} {name}, not {known[name][1]}" for name in ("images", "objects") if name in differ]
        if "names" in differ and "images" not in differ:
            told.append("images of other names or ids, or in another order")
        if "annotations" in differ and not told:
            told.append("other boxes or labels")
        return told


def fingerprint(records: tf.data.Dataset) -> Fingerprint:
    """Read the fingerprint of all records without decoding an image.

    Args:
        records: from a reader, or derived from those; of others only the number is known.
    """
    names, annotations = hashlib.sha256(), hashlib.sha256()
    seen = objects = 0
    counted = True
    for outline in outlines_of(records):
        seen += 1
        names.update(b"%d %s\n" % (outline["image_id"], outline["name"]))
        annotations.update(b"%d %d\n" % (outline["objects"], outline["content"]))
        counted = counted and outline["objects"] != UNKNOWN
        objects += outline["objects"]
    if not seen:
        return Fingerprint(count(records))
    return Fingerprint(count(records), objects if counted else None, names.hexdigest(), annotations.hexdigest())


def outlines_of(records: tf.data.Dataset) -> Iterator[dict[str, Any]]:
    """Yield what the readers know of each of a dataset's records without reading its image; see `OUTLINE_SPEC`."""
    for reader in readers_of(records, lambda reader: reader.outline_of is not None):
        yield from reader.outlines()


def count(records: tf.data.Dataset) -> int:
    """Return the number of records, unreadable ones included; if only a pass can tell, it decodes nothing."""
    reader = reader_of(records)
    entries = records if reader is None else reader.entries
    number = int(entries.cardinality())
    if number < 0:
        logger.info("counting the records")
        number = int(entries.reduce(np.int64(0), lambda total, _: total + 1))
    return number
