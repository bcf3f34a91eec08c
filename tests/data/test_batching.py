import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras.data import load_shapes, prepare, readable_errors
from tfdetr_keras.data.record import RECORD_SPEC
from tfdetr_keras.data.transforms import normalize, resize, resized_size

SIZE = (64, 96)


def as_arrays(dataset):
    return list(dataset.as_numpy_iterator())


def record(image_id=0, height=30, width=40, boxes=(), labels=(), iscrowd=()):
    values = {
        "image": np.full((height, width, 3), 200, np.uint8),
        "image_id": image_id,
        "orig_size": (height, width),
        "boxes": np.reshape(boxes, (-1, 4)),
        "labels": labels,
        "iscrowd": iscrowd,
        "area": np.ones(len(labels)),
    }
    return {key: np.asarray(value, RECORD_SPEC[key].dtype.as_numpy_dtype) for key, value in values.items()}


def records(*entries):
    return tf.data.Dataset.from_generator(lambda: iter(entries), output_signature=RECORD_SPEC)


def test_a_batch_holds_each_image_and_zeros():
    dataset = load_shapes(7, seed=1)[0]
    singles = as_arrays(dataset)
    batches = as_arrays(prepare(dataset, 3, size=SIZE))
    assert [len(targets["labels"]) for _, targets in batches] == [3, 3, 1]
    for inputs, targets in batches:
        values, mask = inputs["pixel_values"], inputs["pixel_mask"]
        sizes = []
        for row, image_id in enumerate(targets["image_id"]):
            single = singles[image_id]
            height, width = np.array(resized_size(*single["orig_size"], *SIZE))
            expected = normalize(resize(single, (height, width))["image"])
            np.testing.assert_allclose(values[row, :height, :width], expected, atol=1e-6)
            assert mask[row].sum() == height * width
            assert mask[row, :height, :width].all()
            assert not values[row][mask[row] == 0].any()
            objects = len(single["labels"])
            np.testing.assert_array_equal(targets["labels"][row, :objects], single["labels"])
            assert (targets["labels"][row, objects:] == -1).all()
            assert not targets["boxes"][row, objects:].any()
            cx, cy, w, h = targets["boxes"][row, :objects].T
            corners = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)
            pixels = corners * np.tile(single["orig_size"][::-1], 2)
            np.testing.assert_allclose(pixels, single["boxes"], atol=1e-4)
            np.testing.assert_array_equal(targets["orig_size"][row], single["orig_size"])
            sizes.append((height, width, objects))
        tallest, widest, most = np.max(sizes, axis=0)
        assert values.shape == (len(sizes), tallest, widest, 3)
        assert targets["labels"].shape == (len(sizes), max(most, 1))


def test_dtypes():
    inputs, targets = prepare(load_shapes(2)[0], 2, size=SIZE).element_spec
    assert {key: spec.dtype.name for key, spec in (inputs | targets).items()} == {
        "pixel_values": "float32",
        "pixel_mask": "int32",
        "labels": "int32",
        "boxes": "float32",
        "image_id": "int64",
        "orig_size": "int32",
    }


def test_crowds_are_no_targets_and_an_empty_batch_has_a_row():
    crowd = record(5, boxes=[[0, 0, 4, 3], [4, 3, 20, 18]], labels=[1, 2], iscrowd=[True, False])
    _, targets = as_arrays(prepare(records(crowd), 1, size=SIZE))[0]
    np.testing.assert_array_equal(targets["labels"], [[2]])
    np.testing.assert_allclose(targets["boxes"], [[[0.3, 0.35, 0.4, 0.5]]], atol=1e-6)
    _, targets = as_arrays(prepare(records(record(6), record(7)), 2, size=SIZE))[0]
    np.testing.assert_array_equal(targets["labels"], [[-1], [-1]])
    np.testing.assert_array_equal(targets["boxes"], np.zeros((2, 1, 4)))


def test_a_fixed_canvas_has_static_shapes():
    dataset = prepare(load_shapes(6)[0], 2, training=True, size=SIZE, pad_to=(96, 112), max_boxes=9)
    inputs, targets = dataset.element_spec
    assert inputs["pixel_values"].shape == (2, 96, 112, 3)
    assert inputs["pixel_mask"].shape == (2, 96, 112)
    assert targets["labels"].shape == (2, 9)
    assert targets["boxes"].shape == (2, 9, 4)
    for inputs, targets in as_arrays(dataset):
        assert inputs["pixel_values"].shape == (2, 96, 112, 3)
        assert not inputs["pixel_mask"][:, :, 97:].any()
        assert targets["labels"].shape == (2, 9)


def test_training_shuffles_and_mirrors_by_seed():
    dataset = load_shapes(24, seed=2)[0]

    def epochs(seed):
        batches = prepare(dataset, 4, training=True, size=SIZE, pad_to=(96, 96), max_boxes=8, seed=seed)
        return [as_arrays(batches) for _ in range(2)]

    def order(epoch):
        return np.concatenate([targets["image_id"] for _, targets in epoch]).tolist()

    first, second = epochs(0)
    assert sorted(order(first)) == sorted(order(second)) == list(range(24))
    assert order(first) != order(second)
    for epoch, repeated in zip([first, second], epochs(0), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, epoch, repeated)
    assert order(first) != order(epochs(1)[0])

    plain = {
        int(targets["image_id"][0]): targets["boxes"][0] for _, targets in as_arrays(prepare(dataset, 1, size=SIZE))
    }
    mirrored = {}
    for number, epoch in enumerate([first, second]):
        for _, targets in epoch:
            for image_id, labels, rows in zip(targets["image_id"], targets["labels"], targets["boxes"], strict=True):
                boxes = rows[labels >= 0]
                expected = plain[image_id][: len(boxes)]
                flipped = expected * [-1, 1, 1, 1] + [1, 0, 0, 0]
                if len(boxes):
                    mirrored[number, image_id] = not np.allclose(boxes, expected, atol=1e-5)
                    np.testing.assert_allclose(boxes, flipped if mirrored[number, image_id] else expected, atol=1e-5)
    assert 0.2 < np.mean(list(mirrored.values())) < 0.8
    assert any(mirrored[0, i] != mirrored[1, i] for n, i in mirrored if n == 0)


def test_training_leaves_an_incomplete_batch_out():
    assert [len(targets["labels"]) for _, targets in as_arrays(prepare(load_shapes(7)[0], 3, True, SIZE))] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"max_boxes": 0}, "max_boxes"),
        ({"size": (96, 64)}, "shortest_edge <= longest_edge"),
        ({"batch_size": 8, "training": True}, "7 records do not fill one training batch of 8"),
    ],
)
def test_arguments_that_cannot_work(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        prepare(load_shapes(7)[0], **({"batch_size": 2} | arguments))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"pad_to": (64, 80)}, r"image 12 is 64 x 85 after the resize, larger than pad_to = 64 x 80"),
        ({"max_boxes": 2}, r"image 12 has 3 objects, more than max_boxes = 2"),
    ],
)
def test_an_image_that_does_not_fit_is_named(arguments, complaint):
    large = record(12, boxes=[[0, 0, 4, 3]] * 3, labels=[0] * 3, iscrowd=[False] * 3)
    batches = prepare(records(record(11, 40, 40), large), 2, size=SIZE, **arguments)
    with pytest.raises(ValueError, match=complaint), readable_errors():
        as_arrays(batches)
