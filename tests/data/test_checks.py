import keras
import numpy as np
import pytest
import tensorflow as tf
from dense_model import DenseModel

from tfdetr_keras.data import checked_dataset, load_shapes, prepare, readable_errors
from tfdetr_keras.losses.criterion import SetCriterion

LABELS = [[0, 1], [2, -1]]
BOXES = [[[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.1, 0.1]], [[0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]]


def batch(labels=LABELS, boxes=BOXES, mask=(4, 5), **extra):
    inputs = {"pixel_values": tf.zeros((2, 4, 5, 3)), "pixel_mask": tf.ones((2, *mask), tf.int32)}
    return inputs, {"labels": tf.constant(labels), "boxes": tf.constant(boxes, tf.float32)} | extra


def read(element, num_classes=3):
    dataset = checked_dataset(tf.data.Dataset.from_tensors(element), num_classes)
    with readable_errors():
        return list(dataset)


@pytest.mark.parametrize("pad", [{}, {"pad_to": (128, 128), "max_boxes": 8}])
def test_good_batches_pass_untouched_with_their_shapes(pad):
    plain = prepare(load_shapes(4)[0], 2, size=(96, 128), **pad)
    checked = checked_dataset(plain, 3)
    assert checked.element_spec == plain.element_spec
    assert checked.cardinality() == plain.cardinality()
    for before, after in zip(plain, checked, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize(
    "element",
    [
        batch(),
        (*batch(), tf.ones(2)),
        (tf.zeros((2, 4, 5, 3)), batch()[1]),
        batch()[0],
        tf.zeros((2, 4, 5, 3)),
        (tf.zeros((2, 4, 5, 3)), tf.zeros(2)),
        batch(masks=tf.zeros((2, 2, 4, 5))),
    ],
    ids=["pair", "weights", "bare pixels", "inputs", "bare inputs", "other targets", "more targets"],
)
def test_every_form_of_an_element_passes(element):
    (found,) = read(element)
    tf.nest.assert_same_structure(found, element)
    tf.nest.map_structure(np.testing.assert_array_equal, found, element)


@pytest.mark.parametrize(
    ("element", "complaint"),
    [
        (batch(labels=[[0, 1], [3, -1]]), "image 1 of the batch, row 0: label 3"),
        (batch(labels=[[0, -2], [2, -1]]), "image 0 of the batch, row 1: label -2"),
        (batch(labels=[[0, 1], [3, -1]], image_id=tf.constant([55, 66])), "image id 66, row 0: label 3"),
        (batch(boxes=np.array(BOXES) * [1, 1, -1, 1]), "negative width"),
        (batch(boxes=np.array(BOXES) * 100), r"outside \[0, 1\]"),
        (batch(boxes=np.array(BOXES) + np.nan), "not finite"),
        (batch(mask=(5, 4)), r"pixel_values is .* \(2, 4, 5, 3\) but pixel_mask .* \(2, 5, 4\)"),
        ((*batch(labels=[[0, 1], [3, -1]]), tf.ones(2)), "label 3"),
        ((tf.zeros((2, 4, 5, 3)), batch(labels=[[0, 1], [3, -1]])[1]), "label 3"),
    ],
)
def test_a_bad_batch_is_explained(element, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        read(element)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__suppress_context__


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the error's way through a TensorFlow graph")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_message_survives_fit(jit_compile):
    model = DenseModel()
    model.compile("sgd", jit_compile=jit_compile)
    dataset = checked_dataset(tf.data.Dataset.from_tensors(batch(labels=[[0, 1], [3, -1]])), 3)
    with (
        pytest.raises(ValueError, match=r"^targets, image 1 of the batch, row 0: label 3 is not a class"),
        readable_errors(),
    ):
        model.fit(dataset, verbose=0)


def test_other_errors_pass_unchanged():
    with pytest.raises(ZeroDivisionError), readable_errors():
        1 / 0  # noqa: B018
    with pytest.raises(tf.errors.InvalidArgumentError), readable_errors():
        tf.reshape(tf.zeros(3), (2, 2))


def ragged(labels, boxes):
    flat = np.reshape([row for rows in boxes for row in rows], (-1, 4))
    return {
        "labels": tf.ragged.constant(labels, dtype=tf.int32),
        "boxes": tf.RaggedTensor.from_row_lengths(tf.constant(flat, tf.float32), [len(rows) for rows in boxes]),
    }


@pytest.mark.parametrize("lengths", [(2, 0, 1), (0, 0, 0)])
def test_ragged_targets_are_padded(lengths):
    rows = [[0.5, 0.5, 0.2, 0.1], [0.3, 0.3, 0.2, 0.2]]
    targets = ragged([[2, 1][:n] for n in lengths], [rows[:n] for n in lengths])
    (found,) = read((tf.zeros((3, 4, 5, 3)), targets))
    most = max(lengths)
    assert found[1]["boxes"].shape == (3, most, 4)
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(found[1]["labels"][row], [2, 1][:length] + [-1] * (most - length))
        np.testing.assert_allclose(
            found[1]["boxes"][row], np.reshape(rows[:length] + [[0] * 4] * (most - length), (-1, 4))
        )


def test_a_bad_ragged_batch_is_explained():
    targets = ragged([[0, 3], []], [[[0.5, 0.5, 0.2, 0.1]] * 2, []])
    with pytest.raises(ValueError, match="image 0 of the batch, row 1: label 3 is not a class"):
        read((tf.zeros((2, 4, 5, 3)), targets))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="ragged tensors are TensorFlow's")
@pytest.mark.parametrize("objects", [True, False])
def test_the_criterion_takes_ragged_targets(objects):
    rng = np.random.default_rng(0)
    outputs = {
        "logits": tf.constant(rng.normal(size=(2, 5, 4)), tf.float32),
        "pred_boxes": tf.constant(rng.uniform(0.2, 0.4, (2, 5, 4)), tf.float32),
    }
    boxes = [[[0.5, 0.5, 0.2, 0.1], [0.3, 0.3, 0.2, 0.2]], [[0.4, 0.4, 0.1, 0.1]]]
    targets = ragged([[0, 2], [1]], boxes) if objects else ragged([[], []], [[], []])
    dense = {"labels": targets["labels"].to_tensor(-1), "boxes": targets["boxes"].to_tensor(shape=(None, None, 4))}
    criterion = SetCriterion()
    found, expected = criterion(outputs, targets), criterion(outputs, dense)
    compiled = tf.function(criterion)(outputs, targets)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
        np.testing.assert_allclose(compiled[name], expected[name], rtol=1e-6)
