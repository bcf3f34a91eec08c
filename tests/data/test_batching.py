from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from dense_model import DenseModel

from tfdetr_keras.data import batching, load_shapes, prepare, readable_errors
from tfdetr_keras.data.record import MASKS_SPEC, RECORD_SPEC
from tfdetr_keras.data.sizes import Resize, target_size
from tfdetr_keras.data.transforms import resize
from tfdetr_keras.preprocessing import IMAGENET_MEAN, IMAGENET_STD

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
            height, width = np.array(target_size(*single["orig_size"], Resize(*SIZE)))
            levels = resize(single, (height, width))["image"].numpy()
            expected = (levels / 255 - IMAGENET_MEAN) / IMAGENET_STD
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


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            {"pad_to": [(64, 80), (72, 80)]},
            r"image 12 is 64 x 85 after the resize, larger than pad_to = 64 x 80, 72 x 80",
        ),
        ({"max_boxes": 2}, r"image 12 has 3 objects, more than max_boxes = 2"),
    ],
)
def test_an_image_that_does_not_fit_is_named(arguments, complaint):
    large = record(12, boxes=[[0, 0, 4, 3]] * 3, labels=[0] * 3, iscrowd=[False] * 3)
    batches = prepare(records(record(11, 40, 40), large), 2, size=SIZE, **arguments)
    with pytest.raises(ValueError, match=complaint), readable_errors():
        as_arrays(batches)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", ["huggingface", "facebook", "table", "fit", "stretch"])
def test_an_image_that_would_be_larger_than_the_canvas_is_made_smaller(rule, training):
    """Both ways up, of the same ratio to a pixel; boxes are of the image, so they stay."""
    sizes = (60, 90), (90, 60)
    lying, upright = (record(12, *size, [[6, 6, 30, 24]], [0], [False]) for size in sizes)
    canvas, options = (48, 64), {"size_rule": rule, "training": training, "augmentation": "none"}
    batches = prepare(records(lying, upright), 1, size=SIZE, pad_to=canvas, max_boxes=1, **options)
    seen = set()
    for inputs, targets in as_arrays(batches):
        mask = inputs["pixel_mask"][0]
        height, width = mask.any(axis=1).sum(), mask.any(axis=0).sum()
        assert mask.shape == canvas
        assert height == canvas[0] or width == canvas[1]  # as large as fits
        if rule != "stretch":
            old_height, old_width = targets["orig_size"][0]
            assert abs(height * old_width / old_height - width) <= 1.5
        seen.add((height, width))
        x, y = (6 + 30) / 2, (6 + 24) / 2
        old_height, old_width = targets["orig_size"][0]
        np.testing.assert_allclose(targets["boxes"][0, 0, :2], [x / old_width, y / old_height], atol=1e-5)
    assert len(seen) == (1 if rule == "stretch" else 2)


def test_buckets_hold_every_image_once_on_the_smallest_canvas():
    dataset, canvases = load_shapes(30, seed=3, size=(48, 160))[0], [(64, 64), (64, 96), (96, 64), (96, 96)]
    seen = []
    for inputs, targets in as_arrays(prepare(dataset, 4, size=SIZE, pad_to=canvases)):
        canvas = inputs["pixel_mask"].shape[1:]
        assert inputs["pixel_values"].shape[1:3] == canvas
        heights, widths = inputs["pixel_mask"].any(axis=2).sum(axis=1), inputs["pixel_mask"].any(axis=1).sum(axis=1)
        for height, width in zip(heights, widths, strict=True):
            assert canvas == next(c for c in canvases if c[0] >= height and c[1] >= width)
        seen += targets["image_id"].tolist()
    assert sorted(seen) == list(range(30))
    training = as_arrays(prepare(dataset, 4, training=True, size=SIZE, pad_to=canvases, max_boxes=9))
    assert {len(targets["labels"]) for _, targets in training} == {4}
    assert {inputs["pixel_mask"].shape[1:] for inputs, _ in training} <= set(canvases)
    assert {targets["boxes"].shape for _, targets in training} == {(4, 9, 4)}


def test_buckets_by_name_suit_the_size():
    wide, tall = record(1, 30, 90), record(2, 90, 30)
    batches = as_arrays(prepare(records(wide, tall, record(3, 30, 30)), 1, size=(64, 160), pad_to="buckets"))
    assert {inputs["pixel_mask"].shape[1:] for inputs, _ in batches} == {(64, 160), (160, 64), (64, 64)}


CANVASES = [(64, 64), (64, 96), (96, 64), (96, 96)]
TRAINING = {"training": True, "size": SIZE, "augmentation": "none"}


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 9])
def test_an_epoch_without_a_batch_is_an_error(batch_size):
    """On the canvases that evaluation, which leaves nothing out, finds for the images."""
    dataset = load_shapes(10, seed=3, size=(48, 160))[0]
    on_canvas = Counter(
        inputs["pixel_mask"].shape[1:] for inputs, _ in as_arrays(prepare(dataset, 1, size=SIZE, pad_to=CANVASES))
    )
    assert len(on_canvas) > 1
    batches = prepare(dataset, batch_size, pad_to=CANVASES, **TRAINING)
    expected = sum(count // batch_size for count in on_canvas.values())
    for _ in range(2):  # epochs
        if expected:
            assert len(as_arrays(batches)) == expected
            continue
        message = rf"^no training batch of {batch_size} images .* any of the 4 canvases .*lower batch_size"
        with pytest.raises(ValueError, match=message) as caught, readable_errors():
            as_arrays(batches)
        assert len(str(caught.value).splitlines()) == 1


def test_an_epoch_of_too_few_images_that_only_its_end_can_count():
    dataset = records(record(1), record(2))
    with pytest.raises(ValueError, match=r"^no training batch of 3 images .* can be read"), readable_errors():
        as_arrays(prepare(dataset, 3, **TRAINING))
    assert len(as_arrays(prepare(dataset, 2, **TRAINING))) == 1
    ((_, targets),) = as_arrays(prepare(dataset, 3, repeat=True, **TRAINING).take(1))
    assert set(targets["image_id"]) == {1, 2}


@pytest.mark.parametrize("options", [{"pad_to": (96, 96), "max_boxes": 4}, {"pad_to": CANVASES}, {}])
def test_batches_of_an_epoch_that_is_counted_are_the_same(options):
    """As without end, where nothing is counted: so are their types and static shapes."""
    made = [record(number, boxes=[[1, 2, 9, 8]], labels=[number], iscrowd=[False]) for number in range(6)]
    for entry in made:
        entry["masks"] = np.ones((1, 30, 40), bool)
    spec = RECORD_SPEC | {"masks": MASKS_SPEC}
    dataset = tf.data.Dataset.from_generator(lambda: iter(made), output_signature=spec)
    epoch, endless = (prepare(dataset, 2, repeat=repeat, seed=3, **TRAINING, **options) for repeat in (False, True))
    assert epoch.element_spec == endless.element_spec
    found = as_arrays(epoch)
    assert len(found) == 3
    tf.nest.map_structure(np.testing.assert_array_equal, found, as_arrays(endless.take(3)))


def test_nothing_is_counted_where_a_batch_is_sure(monkeypatch):
    def refuse(*_):
        raise AssertionError("counted")

    dataset = load_shapes(9, size=(48, 160))[0]
    monkeypatch.setattr(batching, "refuse_empty", refuse)
    assert prepare(dataset, 3, pad_to=(96, 96), **TRAINING).cardinality() == 3
    prepare(dataset, 3, pad_to=CANVASES, **TRAINING)  # 9 images: more than 2 on each of 4
    prepare(dataset, 9, pad_to=CANVASES, repeat=True, **TRAINING)
    prepare(dataset, 9, size=SIZE, pad_to=CANVASES)
    with pytest.raises(AssertionError, match="counted"):
        prepare(dataset, 4, pad_to=CANVASES, **TRAINING)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the error's way through a TensorFlow graph")
def test_fit_tells_that_an_epoch_has_no_batch():
    model = DenseModel()
    model.compile("sgd")
    wide, tall = record(1, 30, 40), record(2, 40, 30)
    batches = prepare(records(wide, tall), 2, pad_to=CANVASES, **TRAINING)
    with pytest.raises(ValueError, match=r"^no training batch of 2 images"), readable_errors():
        model.fit(batches, epochs=2, verbose=0)


def test_boxes_relative_to_the_canvas():
    box = [[10, 6, 30, 24]]
    wide, tall = record(1, 30, 40, box, [0], [False]), record(2, 60, 40, box, [1], [False])
    arguments = {"batch_size": 2, "size": (40, 60)}
    (inputs, plain), *_ = as_arrays(prepare(records(wide, tall), **arguments))
    (_, padded), *_ = as_arrays(prepare(records(wide, tall), box_reference="padded", **arguments))
    canvas = np.array(inputs["pixel_mask"].shape[1:])
    for row, size in enumerate([(40, 53), (60, 40)]):
        np.testing.assert_allclose(
            padded["boxes"][row] * np.tile(canvas[::-1], 2), plain["boxes"][row] * np.tile(size[::-1], 2), rtol=1e-6
        )
    np.testing.assert_allclose(plain["boxes"][0], [[0.5, 0.5, 0.5, 0.6]], rtol=1e-6)


def test_masks_are_resized_and_padded_with_their_objects():
    mask = np.zeros((1, 30, 40), bool)
    mask[0, 6:24, 10:30] = True
    crowd = np.ones((1, 30, 40), bool)
    entry = record(1, 30, 40, [[10, 6, 30, 24], [0, 0, 40, 30]], [0, 1], [False, True])
    entry["masks"] = np.concatenate([mask, crowd])
    other = record(2, 20, 20) | {"masks": np.zeros((0, 20, 20), bool)}
    spec = RECORD_SPEC | {"masks": MASKS_SPEC}
    dataset = tf.data.Dataset.from_generator(lambda: iter([entry, other]), output_signature=spec)
    ((inputs, targets),) = as_arrays(prepare(dataset, 2, size=(60, 80)))
    assert targets["masks"].shape == (2, 1, *inputs["pixel_mask"].shape[1:])
    expected = np.zeros(inputs["pixel_mask"].shape[1:], bool)
    expected[12:48, 20:60] = True
    np.testing.assert_array_equal(targets["masks"][0, 0], expected)
    assert not targets["masks"][1].any()
    ((_, targets),) = as_arrays(prepare(dataset.skip(1), 1, size=(60, 80), pad_to=(80, 80), max_boxes=3))
    assert targets["masks"].shape == (1, 3, 80, 80)
    ((_, targets),) = as_arrays(prepare(dataset.skip(1), 1, size=(60, 80), pad_to=[(60, 60), (80, 80)]))
    assert targets["masks"].shape == (1, 1, 60, 60)
