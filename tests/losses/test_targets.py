"""Every way of not being a training target has its message; valid targets pass."""

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfdetr_keras.losses.targets import validate_batch, validate_targets

BOX = [0.5, 0.5, 0.2, 0.2]
GARBAGE = [np.nan, -3.0, np.inf, 7.0]


def targets(**changes):
    """Two images; the second one has one object and a padding row of rubbish."""
    labels = np.array([[0, 2], [1, -1]], np.int32)
    boxes = np.array([[BOX, BOX], [BOX, GARBAGE]], np.float32)
    return {"labels": labels, "boxes": boxes, **changes}


def test_valid_targets_pass_and_padding_rows_are_not_looked_at():
    validate_targets(**targets(), num_classes=3)
    validate_batch(targets(), num_classes=3)


@pytest.mark.parametrize("objects", [0, 2])
def test_a_batch_without_objects_passes(objects):
    validate_targets(np.full((2, objects), -1), np.zeros((2, objects, 4), np.float32), num_classes=3)


@pytest.mark.parametrize("box", [[0.5, 0.5, 1, 1], [0.5, 0.5, 1 + 1e-6, 1], [-1e-6, 0, 0, 0], [1 + 5e-6, 0.5, 0, 0]])
def test_rounding_at_the_border_passes(box):
    validate_targets(np.array([[0]]), np.array([[box]], np.float32), num_classes=1)


def at(image, row, box=None, label=None):
    """Targets with one entry changed."""
    changed = targets()
    if box is not None:
        changed["boxes"][image, row] = box
    if label is not None:
        changed["labels"][image, row] = label
    return changed


@pytest.mark.parametrize(
    ("bad", "where", "message"),
    [
        (at(0, 1, label=3), "image 0 of the batch, row 1", "label 3 is not a class: expected 0 … 2 for num_classes=3"),
        (at(1, 0, label=-2), "image 1 of the batch, row 0", "label -2 is not a class"),
        (at(0, 1, box=[0.5, np.nan, 0.1, 0.1]), "image 0 of the batch, row 1", "nan.* is not finite"),
        (at(1, 0, box=[0.5, 0.5, np.inf, 0.1]), "image 1 of the batch, row 0", "inf.* is not finite"),
        (at(0, 0, box=[0.5, 0.5, -0.25, 0.1]), "image 0 of the batch, row 0", "-0.25.* negative width or height"),
        (at(0, 0, box=[0.5, 0.5, 0.1, -0.25]), "image 0 of the batch, row 0", "-0.25.* negative width or height"),
        (at(0, 1, box=[320.0, 240.0, 64.0, 48.0]), "image 0 of the batch, row 1", "320.0.* is outside .0, 1."),
        (at(0, 1, box=[-0.125, 0.5, 0.1, 0.1]), "image 0 of the batch, row 1", "-0.125.* is outside .0, 1."),
        (at(0, 1, box=[0.5, 0.5, 1.0625, 0.1]), "image 0 of the batch, row 1", "1.0625.* is outside .0, 1."),
    ],
)
def test_an_error_names_place_and_value(bad, where, message):
    with pytest.raises(ValueError, match=rf"targets, {where}: .*{message}"):
        validate_targets(**bad, num_classes=3)
    with pytest.raises(ValueError, match=rf"targets, {where}: .*{message}"):
        validate_batch({name: ops.convert_to_tensor(value) for name, value in bad.items()}, num_classes=3)


@pytest.mark.parametrize("image_id", [np.array([139, 285]), tf.constant([139, 285]), [139, 285]])
def test_an_error_names_the_image_id(image_id):
    with pytest.raises(ValueError, match="targets, image id 285, row 0: label 7"):
        validate_batch({**at(1, 0, label=7), "image_id": image_id}, num_classes=3)


@pytest.mark.parametrize(
    ("labels", "boxes"),
    [
        (np.zeros(2, int), np.zeros((2, 4))),
        (np.zeros((2, 3), int), np.zeros((2, 2, 4))),
        (np.zeros((2, 3), int), np.zeros((2, 3, 5))),
        (np.zeros((2, 3, 1), int), np.zeros((2, 3, 4))),
    ],
)
def test_shapes_that_do_not_fit(labels, boxes):
    with pytest.raises(ValueError, match=r"targets need labels \(batch, boxes\).*pad images with fewer boxes"):
        validate_targets(labels, boxes, num_classes=3)


@pytest.mark.parametrize("dtype", ["float32", "bool"])
def test_labels_must_be_integers(dtype):
    with pytest.raises(ValueError, match=f"labels must be integers, not {dtype}"):
        validate_targets(np.zeros((1, 1), dtype), np.full((1, 1, 4), 0.5), num_classes=3)


@pytest.mark.parametrize(
    ("bad", "got"), [({"labels": 0}, r"not \['labels'\]"), (np.zeros((2, 4)), "not ndarray"), (None, "not NoneType")]
)
def test_targets_must_be_a_dictionary_of_labels_and_boxes(bad, got):
    with pytest.raises(ValueError, match=rf'targets must be \{{"labels".*{got}'):
        validate_batch(bad, num_classes=3)


def test_symbols_of_a_traced_function_are_left_alone():
    bad = at(0, 0, label=9)

    @tf.function
    def traced(labels, boxes):
        validate_batch({"labels": labels, "boxes": boxes}, num_classes=3)
        return tf.size(labels)

    assert traced(bad["labels"], bad["boxes"]) == 4
