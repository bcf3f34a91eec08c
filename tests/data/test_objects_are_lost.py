"""A set of whose objects none can be used is no set to train on or to measure by; one that has none, or a few, is."""

import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras.data import from_dataset, prepare
from tfdetr_keras.data.validation import EMPTY_BOX
from tfdetr_keras.evaluation.batches import check_measurable

COUNT, HEIGHT, WIDTH = 6, 40, 60
PIXELS = (8.0, 10.0, 30.0, 35.0)
SHARES = (0.1, 0.2, 0.5, 0.8)


def records(boxes, relative=True, label=0, on_error="raise"):
    """An own dataset whose images have the given boxes each, `(images, objects, 4)` xyxy."""
    boxes = np.array(boxes, np.float32).reshape(COUNT, -1, 4)
    content = {
        "image": np.zeros((COUNT, HEIGHT, WIDTH, 3), np.uint8),
        "boxes": boxes,
        "labels": np.full(boxes.shape[:2], label, np.int64),
    }
    fields = {name: name for name in content}
    dataset = tf.data.Dataset.from_tensor_slices(content)
    return from_dataset(dataset, fields, ["cell"], "xyxy", relative, on_error)[0]


def trained_on(dataset):
    return list(prepare(dataset, batch_size=2, size=(40, 60), training=True, augmentation="none"))


LOST = {
    "pixels for shares": ({"boxes": [PIXELS] * COUNT}, "are relative boxes taken for pixels, or pixels for relative"),
    "outside": ({"boxes": [(70, 50, 90, 80)] * COUNT, "relative": False}, "none of 6 boxes has an area inside"),
    "without area": ({"boxes": [(0.5, 0.5, 0.5, 0.5)] * COUNT}, "none of 6 boxes has an area inside its image"),
}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("kind", LOST)
def test_training_does_not_begin(kind, on_error):
    options, complaint = LOST[kind]
    with pytest.raises(ValueError, match=complaint):
        trained_on(records(**options, on_error=on_error))


def test_labels_that_are_no_class_are_all_lost():
    with pytest.raises(ValueError, match=r"none of 6 objects can be used, e\.g\. .*label 7"):
        trained_on(records([SHARES] * COUNT, label=7, on_error="skip"))


@pytest.mark.parametrize("kind", LOST)
def test_nothing_is_measured(kind):
    options, complaint = LOST[kind]
    with pytest.raises(ValueError, match=complaint):
        check_measurable(records(**options, on_error="skip"))


@pytest.mark.parametrize("kind", LOST)
def test_a_pass_tells_at_its_end(kind):
    options, complaint = LOST[kind]
    with pytest.raises(tf.errors.InvalidArgumentError, match=complaint):
        list(records(**options))


def test_one_object_is_enough():
    dataset = records([PIXELS] * (COUNT - 1) + [SHARES])
    assert sum((targets["labels"].numpy() >= 0).sum() for _, targets in trained_on(dataset)) == 1
    assert dataset.tally.counts()[EMPTY_BOX] >= COUNT - 1


def test_images_without_any_object_are_no_loss():
    dataset = records(np.zeros((COUNT, 0, 4)))
    assert len(trained_on(dataset)) == COUNT // 2
    assert len(list(dataset)) == COUNT
