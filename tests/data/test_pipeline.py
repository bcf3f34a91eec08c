import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdetr_keras.data import files, load_coco, load_shapes, prepare
from tfdetr_keras.data.images import decode_image
from tfdetr_keras.data.record import reader_of

SIZE = (64, 96)


def as_arrays(dataset):
    return list(dataset.as_numpy_iterator())


def order(epoch):
    return [int(image_id) for _, targets in epoch for image_id in targets["image_id"]]


def by_image(epoch):
    """Image id -> its pixels and targets, without the padding."""
    found = {}
    for inputs, targets in epoch:
        for row, image_id in enumerate(targets["image_id"].tolist()):
            mask, real = inputs["pixel_mask"][row], targets["labels"][row] >= 0
            pixels = inputs["pixel_values"][row, : mask.any(axis=1).sum(), : mask.any(axis=0).sum()]
            found[image_id] = (pixels, targets["labels"][row][real], targets["boxes"][row][real])
    return found


def assert_same(first, second):
    tf.nest.map_structure(np.testing.assert_array_equal, first, second)


def test_flips_are_fair_and_follow_the_seed():
    dataset = load_shapes(24, seed=2)[0]

    def epochs(seed):
        batches = prepare(dataset, 4, True, SIZE, pad_to=(96, 96), max_boxes=8, augmentation="flip", seed=seed)
        return [as_arrays(batches) for _ in range(2)]

    first, second = epochs(0)
    assert sorted(order(first)) == sorted(order(second)) == list(range(24))
    assert order(first) != order(second)
    assert_same([first, second], epochs(0))
    assert order(first) != order(epochs(1)[0])

    plain = by_image(as_arrays(prepare(dataset, 1, size=SIZE)))
    mirrored = {}
    for number, epoch in enumerate([first, second]):
        for image_id, (_, _, boxes) in by_image(epoch).items():
            expected = plain[image_id][2]
            flipped = expected * [-1, 1, 1, 1] + [1, 0, 0, 0]
            if len(boxes):
                mirrored[number, image_id] = not np.allclose(boxes, expected, atol=1e-5)
                np.testing.assert_allclose(boxes, flipped if mirrored[number, image_id] else expected, atol=1e-5)
    assert 0.2 < np.mean(list(mirrored.values())) < 0.8
    assert any(mirrored[0, i] != mirrored[1, i] for n, i in mirrored if n == 0)


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_together_are_the_whole_and_augmented_alike(shards):
    """Whatever a record's shard, epoch and neighbours: its augmentation hangs on the seed, the epoch and its place."""
    dataset = load_shapes(18, seed=5)[0]
    arguments = {"batch_size": 1, "training": True, "size": SIZE, "color_jitter": True, "repeat": True, "seed": 7}
    epochs = [as_arrays(prepare(dataset, **arguments).skip(18 * e).take(18)) for e in range(2)]
    parts = [prepare(dataset, shard=(shards, index), **arguments).take(36 // shards) for index in range(shards)]
    parts = [as_arrays(part) for part in parts]
    assert sorted(image_id for part in parts for image_id in order(part[: 18 // shards])) == list(range(18))
    for number in range(2):
        half = slice(number * 18 // shards, (number + 1) * 18 // shards)
        together = {}
        for part in parts:
            together |= by_image(part[half])
        assert_same(by_image(epochs[number]), together)
    assert not np.array_equal(order(epochs[0]), order(epochs[1]))


def test_the_same_batches_whatever_the_parallelism():
    dataset = load_shapes(16, seed=5)[0]
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    batches = prepare(dataset, 4, training=True, size=SIZE, color_jitter=True)
    expected = as_arrays(prepare(dataset, 4, training=True, size=SIZE, color_jitter=True))
    assert_same(as_arrays(batches.with_options(options)), expected)


@pytest.mark.parametrize("program_seed", [0, 5])
def test_the_same_batches_whatever_the_seed_of_the_program(program_seed):
    """TensorFlow's `shuffle` mixes it in, and fails where it is 0."""
    dataset = load_shapes(16, seed=5)[0]
    batches = [as_arrays(prepare(dataset, 4, training=True, size=SIZE))]
    keras.utils.set_random_seed(program_seed)
    batches.append(as_arrays(prepare(dataset, 4, training=True, size=SIZE)))
    assert_same(*batches)


def test_training_can_begin_at_any_epoch():
    dataset = load_shapes(9, seed=1)[0]
    arguments = {"batch_size": 3, "training": True, "size": SIZE}
    whole = as_arrays(prepare(dataset, repeat=True, **arguments).take(9))
    assert_same(whole[6:], as_arrays(prepare(dataset, repeat=True, first_epoch=2, **arguments).take(3)))
    assert sorted(order(whole[3:6])) == list(range(9))
    passes = prepare(dataset, first_epoch=1, **arguments)
    assert_same(whole[3:6], as_arrays(passes))
    assert_same(whole[6:], as_arrays(passes))


def test_what_training_knows_of_its_length():
    dataset = load_shapes(7)[0]
    batches = prepare(dataset, 3, True, SIZE)
    assert batches.cardinality() == 2  # so that Keras shows progress in the first epoch
    assert [len(targets["labels"]) for _, targets in as_arrays(batches)] == [3, 3]
    assert prepare(dataset, 3, size=SIZE).cardinality() == 3
    assert len(order(as_arrays(prepare(dataset, 2, size=SIZE, shard=(2, 0))))) == 4
    assert prepare(dataset, 3, True, SIZE, repeat=True).cardinality() < 0


def test_only_the_images_of_the_shard_are_read(tmp_path, monkeypatch):
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in range(8)]
    content = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    (tmp_path / "set.json").write_text(json.dumps(content))
    for image in images:
        Image.new("RGB", (60, 40)).save(tmp_path / image["file_name"])
    decoded = []
    monkeypatch.setattr(files, "decode_image", lambda *args: decoded.append(args) or decode_image(*args))
    records, _ = load_coco(tmp_path, tmp_path / "set.json")
    for training in (False, True):
        assert len(order(as_arrays(prepare(records, 2, training, SIZE, shard=(2, 1))))) == 4
        assert len(decoded) == 4
        decoded.clear()


def test_a_function_of_your_own():
    def negative(record, seed):
        return record | {"image": 255 - record["image"]}

    dataset = load_shapes(4)[0]
    plain = by_image(as_arrays(prepare(dataset, 2, True, SIZE, augmentation="none")))
    found = by_image(as_arrays(prepare(dataset, 2, True, SIZE, augmentation=negative)))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for image_id, (pixels, labels, boxes) in plain.items():
        levels = (pixels * deviation + mean) * 255
        np.testing.assert_allclose((found[image_id][0] * deviation + mean) * 255, 255 - levels, atol=1.01)
        np.testing.assert_array_equal(found[image_id][1], labels)
        np.testing.assert_array_equal(found[image_id][2], boxes)


def test_records_that_were_changed_since_are_prepared_all_the_same():
    dataset = load_shapes(12)[0]
    even = dataset.filter(lambda record: record["image_id"] % 2 == 0)
    assert reader_of(dataset) is not None
    assert reader_of(even) is None
    assert sorted(order(as_arrays(prepare(even, 2, True, SIZE)))) == [0, 2, 4, 6, 8, 10]
    cached = dataset.cache()
    assert_same(as_arrays(prepare(cached, 4, size=SIZE)), as_arrays(prepare(dataset, 4, size=SIZE)))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"max_boxes": 0}, "max_boxes"),
        ({"size": (96, 64)}, "shortest_edge <= longest_edge"),
        ({"batch_size": 8, "training": True}, "7 records do not fill one training batch of 8"),
        ({"batch_size": 4, "training": True, "shard": (2, 1)}, "3 records do not fill one training batch of 4"),
        ({"shard": (2, 2)}, "shard must be"),
        ({"pad_to": "square"}, "pad_to must be None"),
        ({"pad_to": 800}, "pad_to must be None"),
        ({"pad_to": []}, "pad_to must be None"),
        ({"pad_to": [(64, 64), 96]}, "pad_to must be None"),
        ({"size": 800}, "size must be"),
        ({"training": True, "shuffle_buffer": 0}, "shuffle_buffer must be at least 1"),
        ({"training": True, "augmentation": "mosaic"}, "augmentation must be one of"),
        ({"size_rule": "torch"}, "size_rule must be one of"),
        ({"box_reference": "canvas"}, "box_reference must be one of"),
    ],
)
def test_arguments_that_cannot_work(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        prepare(load_shapes(7)[0], **({"batch_size": 2} | arguments))


@pytest.mark.parametrize(
    ("dataset", "complaint"),
    [
        (lambda: load_shapes(2), "dataset is a tuple: readers return the records and the class names"),
        (lambda: [1, 2], "must be a tf.data.Dataset of records, not list"),
        (
            lambda: tf.data.Dataset.range(3),
            "are not records, image, image_id, .* make records with td.data.from_dataset",
        ),
        (lambda: tf.data.Dataset.range(3).map(lambda x: {"image": x}), "are not records, image_id, .*'image'"),
    ],
)
def test_what_is_no_dataset_of_records(dataset, complaint):
    with pytest.raises(ValueError, match=complaint):
        prepare(dataset(), 2)
