"""The input of an evaluation: batches as `prepare` makes them, with the truth about the original images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from tfdetr_keras.backend.processes import number_of_processes, process_index
from tfdetr_keras.data.augmentation import evaluation
from tfdetr_keras.data.batching import Batch, encode, pad_batches
from tfdetr_keras.data.record import Record, reader_of
from tfdetr_keras.data.sizes import Resize
from tfdetr_keras.preprocessing import Preprocessing


def evaluation_batches(
    records: tf.data.Dataset,
    truth: Callable[[Record], Mapping[str, tf.Tensor]],
    preprocessing: Preprocessing,
    batch_size: int,
) -> tf.data.Dataset:
    """Return the batches that `prepare` makes of records, with the truth about the images before the resize.

    Args:
        records: see `tfdetr_keras.data.record`; where several processes work, this one's part is taken.
        truth: from a record to tensors; their names are prefixed with "true_".
        preprocessing: of the model.
        batch_size: images a batch.
    """
    resize = Resize.of(preprocessing)

    def encode_with_truth(record: Record) -> Batch:
        # Masks are compared in the size of the original image: none are resized.
        inputs, targets = encode(evaluation({key: record[key] for key in record if key != "masks"}, resize))
        return inputs, targets | {f"true_{key}": value for key, value in truth(record).items()}

    examples = part_of_this_worker(records).map(
        encode_with_truth, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return pad_batches(examples, batch_size, preprocessing.pad_to, preprocessing=preprocessing)


def check_measurable(records: tf.data.Dataset) -> None:
    """Raise a `ValueError` if nothing could be measured on records, before a model has run over all of them.

    This is so if none of a set's objects can be used, or if two of its records share an image id and this is known
    before they are read.
    """
    if (reader := reader_of(records)) is not None:
        reader.refuse_total_loss()
        if reader.image_ids is not None:
            _refuse_repeated(reader.image_ids)


def _refuse_repeated(image_ids: tf.data.Dataset) -> None:
    """Raise if two records have the same image id."""
    seen: dict[int, int] = {}
    for place, image_id in enumerate(image_ids.as_numpy_iterator()):
        first = seen.setdefault(int(image_id), place)
        if first != place:
            raise ValueError(
                f"records {first} and {place} have the same image id, {image_id}, so detections could belong to "
                "either: write each image once, with a source_id of its own"
            )


def part_of_this_worker(records: tf.data.Dataset) -> tf.data.Dataset:
    """Return the records that this process measures, where several train a model together."""
    workers, reader = number_of_processes(), reader_of(records)
    if workers == 1:
        return records
    if reader is None:
        return records.shard(workers, process_index())
    return reader.records(reader.entries.shard(workers, process_index()))
