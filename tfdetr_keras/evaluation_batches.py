"""What models are measured on: batches as `prepare` makes them, with what is true of the original images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

import tensorflow as tf

from tfdetr_keras.data.batching import Batch, encode, pad_batches
from tfdetr_keras.data.recipes import evaluation
from tfdetr_keras.data.record import Record, reader_of
from tfdetr_keras.data.sizes import Resize
from tfdetr_keras.preprocessing import SizeRule
from tfdetr_keras.workers import number_of_workers, worker_index


def evaluation_batches(
    records: tf.data.Dataset,
    truth: Callable[[Record], Mapping[str, tf.Tensor]],
    size: tuple[int, int],
    batch_size: int,
    pad_to: tuple[int, int] | None,
    size_rule: SizeRule,
) -> tf.data.Dataset:
    """What `prepare` makes of records for a model, with what is true of them before the resize.

    Args:
        records: see `tfdetr_keras.data.record`; where several processes work, this one's part is taken.
        truth: from a record to tensors; their names get "true_" before them.
        size: see `evaluate_detections`, as what follows.
        batch_size: images a batch.
        pad_to: (height, width) of a fixed canvas.
        size_rule: by which rule images are resized.

    Raises:
        ValueError: an unknown `size_rule`; a set of whose objects none can be used; an image id that two records have,
            where that is known before they are read.
    """
    if size_rule not in get_args(SizeRule):
        raise ValueError(f"size_rule must be one of {get_args(SizeRule)}, not {size_rule!r}")
    if (reader := reader_of(records)) is not None:
        reader.refuse_total_loss()
        if reader.image_ids is not None:
            _refuse_repeated(reader.image_ids)
    resize = Resize(*size, size_rule, strict=pad_to is not None)

    def encode_with_truth(record: Record) -> Batch:
        # Masks are compared in the size of the original image: none are resized.
        inputs, targets = encode(evaluation({key: record[key] for key in record if key != "masks"}, resize))
        return inputs, targets | {f"true_{key}": value for key, value in truth(record).items()}

    examples = _part_of_this_worker(records).map(
        encode_with_truth, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return pad_batches(examples, batch_size, pad_to)


def _refuse_repeated(image_ids: tf.data.Dataset) -> None:
    """Raises if two records have one image id, before a model has been over all of them."""
    seen: dict[int, int] = {}
    for place, image_id in enumerate(image_ids.as_numpy_iterator()):
        first = seen.setdefault(int(image_id), place)
        if first != place:
            raise ValueError(
                f"records {first} and {place} have one image id, {image_id}: detections could belong to either; write "
                "each image once, with a source_id of its own"
            )


def _part_of_this_worker(records: tf.data.Dataset) -> tf.data.Dataset:
    workers, reader = number_of_workers(), reader_of(records)
    if workers == 1:
        return records
    if reader is None:
        return records.shard(workers, worker_index())
    return reader.records(reader.entries.shard(workers, worker_index()))
