import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras import data
from tfdetr_keras.data.record import reader_of


def ids(records):
    return [int(record["image_id"]) for record in records]


def test_both_parts_are_the_whole_and_the_same_every_time():
    records, _ = data.load_shapes(20, size=(16, 24))
    training, validation = data.split(records, 0.25, seed=3)
    assert len(ids(validation)) == 5
    assert sorted(ids(training) + ids(validation)) == list(range(20))
    assert ids(validation) == ids(data.split(records, 0.25, seed=3)[1]) != ids(data.split(records, 0.25, seed=4)[1])
    assert ids(validation) != list(range(15, 20))  # by lot: files often stand in the order of their classes


def test_parts_are_readers_datasets():
    """Counted, shuffled by name, and trained on."""
    training, validation = data.split(data.load_shapes(12, size=(16, 24))[0], 0.5)
    assert reader_of(training).entries.cardinality() == reader_of(validation).entries.cardinality() == 6
    batches = data.prepare(training, 3, training=True, size=(24, 24))
    assert batches.cardinality() == 2
    seen = np.concatenate([targets["image_id"] for _, targets in batches])
    assert sorted(seen) == sorted(ids(training))


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_no_part_is_empty(share):
    parts = data.split(data.load_shapes(3, size=(16, 24))[0], share)
    assert sorted(len(ids(part)) for part in parts) == [1, 2]


def test_what_cannot_be_split():
    records, _ = data.load_shapes(3)
    for share in (0, 1, -0.5, float("nan")):
        with pytest.raises(ValueError, match="share must be between 0 and 1"):
            data.split(records, share)
    with pytest.raises(ValueError, match="1 records cannot be split in two"):
        data.split(data.load_shapes(1)[0], 0.5)
    with pytest.raises(ValueError, match="must come straight from a reader"):
        data.split(records.take(2), 0.5)
    spec = {
        "image": tf.TensorSpec((4, 4, 3), tf.uint8),
        "boxes": tf.TensorSpec((0, 4)),
        "labels": tf.TensorSpec((0,), tf.int32),
    }
    unknown = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    dataset, _ = data.from_dataset(unknown, {key: key for key in spec}, ["a"], "xyxy", False)
    with pytest.raises(ValueError, match="number of records is not known"):
        data.split(dataset, 0.5)
