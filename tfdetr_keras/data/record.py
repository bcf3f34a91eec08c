"""The one record format: what every reader yields and every transform takes.

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
| `masks`      | bool    | (objects, height, width) | the object's pixels; only where they were asked for  |

Boxes lie inside their image and have an area. Annotations are checked where they enter, in
`tfdetr_keras.data.validation`, so that nothing behind it has to.

A reader knows its records before their images are read: as entries, which are cheap to shuffle and to shard. It leaves
them with its dataset, for `prepare`. It also knows their files: `file_of` and `name_of` ask for them, of whatever was
made of its dataset since.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
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
    """Give a record made by a host function the shapes and dtypes of `RECORD_SPEC`, and leave out other keys."""
    specs = RECORD_SPEC | ({"masks": MASKS_SPEC} if "masks" in record else {})
    return {key: tf.ensure_shape(tf.cast(record[key], spec.dtype), spec.shape) for key, spec in specs.items()}


@dataclass(frozen=True, repr=False)
class Reader:
    """Where a dataset of records comes from.

    Attributes:
        entries: a dataset of what `read` takes, cheap to produce.
        read: entry -> record with the key "readable", run in parallel.
        validation: what happens to faulty data.
        entries_are_small: whether all entries can be held in memory to shuffle from: names, not pixels.
        file_of: image id -> the image's file, or None where it is not known; None if no image has one.
        boxes_come_last: whether boxes are looked at only while records are read, so that a set all of whose boxes are
            lost is found out only then.
        image_ids: of all records, where they may repeat and are cheaper to read than records.
        outline_of: entry -> `OUTLINE_SPEC`, without decoding the image; None where only reading it would tell.
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
        """Read entries, in parallel; unreadable ones are an error or left out, as `on_error` has it.

        Entries may be tagged, pairs (tag, entry); so are the records then.
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
        """Raise a ValueError if no object of the set can be used, which the first records mostly disprove.

        Records are read until one has an object, or enough of them nothing to lose. Other faults are left for the pass
        over the records that comes later.
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
        """Return the dataset of records that a reader returns: carries the reader, and its tally as `tally`.

        Notebooks show it as `_repr_html_` has it. Its `repr` is TensorFlow's, which no attribute changes.
        """
        records = self.records(self.entries)
        records.reader, records.tally = self, self.validation.tally
        records._repr_html_ = functools.partial(self._html, records.element_spec)
        return records

    def __repr__(self) -> str:
        """What is read, in one line."""
        return f"<Reader of {self._count()}, on_error={self.validation.on_error!r}, {self.validation.tally!r}>"

    def _count(self) -> str:
        count = int(self.entries.cardinality())
        return f"{count} images" if count >= 0 else "images"

    def _html(self, spec: Mapping[str, tf.TensorSpec]) -> str:
        """Return how many records there are, what was left out of them so far, and what each holds."""
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
    """Return the reader whose records a dataset holds, or None if something was done to them since."""
    return getattr(dataset, "reader", None)


def tally_of(dataset: tf.data.Dataset) -> Tally | None:
    """What the reader of a dataset has left out so far; None if it is not a reader's."""
    reader = reader_of(dataset)
    return None if reader is None else reader.validation.tally


def file_of(dataset: tf.data.Dataset, image_id: int) -> str | None:
    """Return the file of an image, by the readers that a dataset's elements come from.

    Args:
        dataset: of records or batches, whatever was done to them since they were read: split, shuffled, mapped, cached,
            sharded, batched. Where images of several sets were joined, those of one id may be any of them.
        image_id: of one of its images.

    Returns:
        The path as the reader has it, "a.jpg or b.jpg" of an id that several sets have, or None where it is not known:
        of drawn shapes and images in memory, behind generators, of files with pixels and annotations together that do
        not name the image, and, of such files, for images that were read long ago.
    """
    readers = readers_of(dataset, lambda reader: reader.file_of is not None)
    found = [reader.file_of(int(image_id)) for reader in readers if reader.file_of is not None]
    return " or ".join(dict.fromkeys(file for file in found if file)) or None


def name_of(dataset: tf.data.Dataset, image_id: int) -> str:
    """What messages call an image: its file, where `file_of` knows it, and its id."""
    file = file_of(dataset, image_id)
    return f"image {image_id}" if file is None else f"{file} (image {image_id})"


def title_of(dataset: tf.data.Dataset, image_id: int) -> str:
    """Return what pictures call an image: the name of its file, or "image 7" where `file_of` does not know it."""
    file = file_of(dataset, image_id)
    return f"image {image_id}" if file is None else os.path.basename(file)


def readers_of(dataset: tf.data.Dataset, wanted: Callable[[Reader], bool]) -> list[Reader]:
    """Return the readers that a dataset's elements come from, whatever was done to them since they were read.

    Args:
        dataset: of records or batches.
        wanted: whether a reader is one of those; where it is not, that behind it may be.
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
    """What a dataset was made of. TensorFlow has no public name for it; without, images are called by their ids."""
    inputs = getattr(dataset, "_inputs", None)
    return list(inputs()) if callable(inputs) else []
