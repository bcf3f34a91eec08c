"""The one record format: every reader yields it and every transform takes it.

A record is a dict of tensors describing one image and its objects:

| key          | dtype   | shape                    | meaning                                              |
|--------------|---------|--------------------------|------------------------------------------------------|
| `image`      | uint8   | (height, width, 3)       | RGB                                                  |
| `image_id`   | int64   | ()                       |                                                      |
| `orig_size`  | int32   | (2,)                     | height and width before any resize                   |
| `boxes`      | float32 | (objects, 4)             | xyxy, absolute pixels of `image`                     |
| `labels`     | int32   | (objects,)               | 0 .. num_classes - 1                                 |
| `iscrowd`    | bool    | (objects,)               | a group marked as one: no target, ignored in the AP  |
| `area`       | float32 | (objects,)               | pixels² of the object (not of its box) in `image`    |
| `masks`      | bool    | (objects, height, width) | the object's pixels; only if they were requested     |

Boxes lie inside their image and have an area. Annotations are checked on entry, in `tfdetr_keras.data.validation`, so
that later code need not check them.

A reader knows its records before their images are read: as entries, which are cheap to shuffle and to shard. It
attaches them to its dataset, for `prepare`. It also knows their files: `file_of` and `name_of` look them up, for any
dataset that was made from the reader's.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfdetr_keras import notebook
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.validation import MANY, WITHOUT_BOXES, Tally, Validation

Record = dict[str, tf.Tensor]

RECORD_SPEC = {
    "image": tf.TensorSpec((None, None, 3), tf.uint8),
    "image_id": tf.TensorSpec((), tf.int64),
    "orig_size": tf.TensorSpec((2,), tf.int32),
    "boxes": tf.TensorSpec((None, 4), tf.float32),
    "labels": tf.TensorSpec((None,), tf.int32),
    "iscrowd": tf.TensorSpec((None,), tf.bool),
    "area": tf.TensorSpec((None,), tf.float32),
}
MASKS_SPEC = tf.TensorSpec((None, None, None), tf.bool)
OBJECT_KEYS = ("boxes", "labels", "iscrowd", "area", "masks")  # have one row per object
MOST_WITHOUT = 64  # records without objects that are looked at for one
# What is known of a record before its image is read.
OUTLINE_SPEC = {
    "name": tf.TensorSpec((), tf.string),  # the file's, from the folder of the set on; "" where there is none
    "image_id": tf.TensorSpec((), tf.int64),
    "objects": tf.TensorSpec((), tf.int64),  # those that a model is to find, crowds left away; -1: not known
    "content": tf.TensorSpec((), tf.int64),  # a checksum over boxes, labels and crowds; 0: not known
}
OUTLINES_AT_ONCE = 1024
READABLE = "readable"  # of a record on its way out of a reader: False where its image could not be read


def with_static_shapes(record: Record) -> Record:
    """Set the shapes and dtypes of `RECORD_SPEC` on a record made by a Python function, and leave out other keys."""
    specs = RECORD_SPEC | ({"masks": MASKS_SPEC} if "masks" in record else {})
    return {key: tf.ensure_shape(tf.cast(record[key], spec.dtype), spec.shape) for key, spec in specs.items()}


@dataclass(frozen=True, repr=False)
class Reader:
    """The source of a dataset of records.

    Attributes:
        entries: a dataset of what `read` takes, cheap to produce.
        read: entry -> record with the key "readable", run in parallel.
        validation: decides what happens to faulty data.
        entries_are_small: whether all entries can be held in memory to shuffle from: names, not pixels.
        file_of: image id -> the image's file, or None where it is not known; None if no image has one.
        boxes_come_last: whether boxes are checked only while records are read, so that a set that loses all its boxes
            is discovered only then.
        image_ids: of all records, where they may repeat and are cheaper to read than records.
        outline_of: entry -> `OUTLINE_SPEC`, without decoding the image; None if only reading it would tell.
        splits: how many times the records were split, so that the parts of a part are drawn by other lots.
    """

    entries: tf.data.Dataset
    read: Callable[[Any], Record]
    validation: Validation
    entries_are_small: bool
    file_of: Callable[[int], str | None] | None = None
    boxes_come_last: bool = False
    image_ids: tf.data.Dataset | None = None
    outline_of: Callable[[Any], dict[str, tf.Tensor]] | None = None
    splits: int = 0

    def outlines(self) -> Iterator[dict[str, Any]]:
        """Yield what is known of each record before its image is read: plain values by the keys of `OUTLINE_SPEC`."""
        if self.outline_of is None:
            return
        outlines = self.entries.map(self.outline_of, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        for batch in outlines.batch(OUTLINES_AT_ONCE).as_numpy_iterator():
            columns = {key: column.tolist() for key, column in batch.items()}
            for row in range(len(columns["image_id"])):
                yield {key: column[row] for key, column in columns.items()}

    def records(self, entries: tf.data.Dataset, deterministic: bool = True) -> tf.data.Dataset:
        """Read entries, in parallel; raise an error for unreadable ones or leave them out, depending on `on_error`.

        Entries may be tagged, pairs (tag, entry); then the records are, too.
        """

        # Autograph, of which no reader needs anything, would bury the message of what it raises at the call.
        @tf.autograph.experimental.do_not_convert
        def read(*tag_and_entry: Any) -> tuple[Any, ...]:
            *tag, entry = tag_and_entry
            return *tag, self.read(entry)

        def without_flag(*tag_and_record: Any) -> Any:
            *tag, record = tag_and_record
            record = {key: value for key, value in record.items() if key != READABLE}
            return (*tag, record) if tag else record

        records = entries.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=deterministic)
        if self.validation.on_error == "skip":
            records = records.filter(lambda *tag_and_record: tag_and_record[-1][READABLE])
        records = records.map(without_flag)
        if self.boxes_come_last:
            records = _with_last_word(records, self.validation.refuse_total_loss)
        records.origin = self
        return records

    def refuse_total_loss(self) -> None:
        """Raise a ValueError if no object of the set can be used; usually the first records show that some can.

        Records are read until one has an object, or until enough of them had none to lose. Other faults are left to the
        later pass over the records.
        """
        if WITHOUT_BOXES in self.validation.tally.counts():
            raise ValueError(self.validation.tally.descriptions(WITHOUT_BOXES)[0])
        if not self.boxes_come_last or self.validation.objects_kept:
            return
        with contextlib.suppress(ValueError, tf.errors.OpError):
            labels = self.records(self.entries).map(lambda record: record["labels"])
            for place, found in enumerate(labels.as_numpy_iterator()):
                if (
                    len(found)
                    or self.validation.objects >= MANY
                    or (place >= MOST_WITHOUT and not self.validation.objects)
                ):
                    return
        self.validation.refuse_total_loss(for_training=True)

    def dataset(self) -> tf.data.Dataset:
        """Return the dataset of records that a reader returns; it carries the reader, and its tally as `tally`.

        Notebooks show it by its `_repr_html_`. Its `repr` is TensorFlow's, which no attribute changes.
        """
        records = self.records(self.entries)
        records.reader, records.tally = self, self.validation.tally
        records._repr_html_ = functools.partial(self._html, records.element_spec)
        return records

    def __repr__(self) -> str:
        """Return a description of what is read, in one line."""
        return f"<Reader of {self._count()}, on_error={self.validation.on_error!r}, {self.validation.tally!r}>"

    def _count(self) -> str:
        count = int(self.entries.cardinality())
        return f"{count} images" if count >= 0 else "images"

    def _html(self, spec: Mapping[str, tf.TensorSpec]) -> str:
        """Return a table of how many records there are, what was left out of them so far, and what each holds."""
        rows = [(key, value.dtype.name, str(value.shape.as_list()).replace("None", "·")) for key, value in spec.items()]
        return notebook.page(
            f"Records of {self._count()}",
            notebook.table((), [(line,) for line in str(self.validation.tally).splitlines()]),
            notebook.table(("key", "dtype", "shape"), rows),
        )


def _with_last_word(records: tf.data.Dataset, check: Callable[[], None]) -> tf.data.Dataset:
    """Return the same records, with a check at the end of each pass."""

    def checked_now() -> np.int64:
        check()
        return np.int64(0)

    def nothing(_: tf.Tensor) -> tf.data.Dataset:
        with tf.control_dependencies([numpy_call(checked_now, [], tf.int64)]):
            return records.take(tf.constant(0, tf.int64))

    checked = records.concatenate(tf.data.Dataset.range(1).flat_map(nothing))
    count = int(records.cardinality())
    return checked.apply(tf.data.experimental.assert_cardinality(count)) if count >= 0 else checked


def reader_of(dataset: tf.data.Dataset) -> Reader | None:
    """Return the reader whose records a dataset holds, or None if the dataset was changed since."""
    return getattr(dataset, "reader", None)


def tally_of(dataset: tf.data.Dataset) -> Tally | None:
    """Return what the reader of a dataset has left out so far; None if the dataset is not a reader's."""
    reader = reader_of(dataset)
    return None if reader is None else reader.validation.tally


def file_of(dataset: tf.data.Dataset, image_id: int) -> str | None:
    """Return the file of an image, by the readers that a dataset's elements come from.

    Args:
        dataset: of records or batches, whatever was done to them since they were read: split, shuffled, mapped, cached,
            sharded, batched. Where images of several sets were joined, an id may belong to any of them.
        image_id: of one of its images.

    Returns:
        The path as the reader has it, "a.jpg or b.jpg" for an id that several sets have, or None where it is not known:
        for drawn shapes and images in memory, behind generators, for files with pixels and annotations together that do
        not name the image, and, of such files, for images that were read long ago.
    """
    readers = readers_of(dataset, lambda reader: reader.file_of is not None)
    found = [reader.file_of(int(image_id)) for reader in readers if reader.file_of is not None]
    return " or ".join(dict.fromkeys(file for file in found if file)) or None


def name_of(dataset: tf.data.Dataset, image_id: int) -> str:
    """Return the name of an image for messages: its file, if `file_of` knows it, and its id."""
    file = file_of(dataset, image_id)
    return f"image {image_id}" if file is None else f"{file} (image {image_id})"


def title_of(dataset: tf.data.Dataset, image_id: int) -> str:
    """Return the title of an image for pictures: the name of its file, or "image 7" if `file_of` does not know it."""
    file = file_of(dataset, image_id)
    return f"image {image_id}" if file is None else os.path.basename(file)


def records_with_ids(dataset: tf.data.Dataset, image_ids: Iterable[int]) -> tf.data.Dataset:
    """Return the records of some images, in the order of the dataset, without reading others where that is possible.

    Args:
        dataset: of records.
        image_ids: of the images.
    """
    wanted = tf.constant(sorted(set(image_ids)), tf.int64)

    def is_one(image_id: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(image_id == wanted)

    reader = reader_of(dataset)
    if reader is None or (outline_of := reader.outline_of) is None:
        return dataset.filter(lambda record: is_one(record["image_id"])).take(len(wanted))
    return reader.records(reader.entries.filter(lambda entry: is_one(outline_of(entry)["image_id"])))


def readers_of(dataset: tf.data.Dataset, wanted: Callable[[Reader], bool]) -> list[Reader]:
    """Return the readers that a dataset's elements come from, whatever was done to them since they were read.

    Args:
        dataset: of records or batches.
        wanted: whether to return a reader; if not, the reader behind it may be returned.
    """
    found: list[Reader] = []
    pending, seen = [dataset], set()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        origin = getattr(one, "origin", None)
        if origin is not None and wanted(origin):
            found.append(origin)
        elif origin is not None:
            pending.append(origin.entries)
        else:
            pending += _inputs(one)
    return found


def _inputs(dataset: tf.data.Dataset) -> list[tf.data.Dataset]:
    """Return the datasets that a dataset was made of.

    TensorFlow has no public name for it; without it, images are named by their ids.
    """
    inputs = getattr(dataset, "_inputs", None)
    return list(inputs()) if callable(inputs) else []
