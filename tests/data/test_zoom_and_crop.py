import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras.data.transforms import have_sides
from tfdetr_keras.data.zoom_and_crop import (
    AS_IT_IS,
    OPTIONS,
    TRIALS,
    iou_crop,
    random_rounds,
    whole,
    zoom_out,
)

ROUNDS = 60
SIZES = [(48, 64), (64, 48), (31, 200), (1, 90), (2, 2), (400, 300)]
crop_of = tf.function(
    lambda boxes, is_object, size, options, draws: iou_crop(
        boxes, is_object, size, lambda number: (options[number], draws[number])
    ),
    input_signature=[
        tf.TensorSpec((None, 4)),
        tf.TensorSpec((None,), tf.bool),
        tf.TensorSpec((2,), tf.int32),
        tf.TensorSpec((ROUNDS,), tf.int32),
        tf.TensorSpec((ROUNDS, TRIALS, 4)),
    ],
)
random_crop = tf.function(
    lambda boxes, is_object, size, seed: iou_crop(boxes, is_object, size, random_rounds(seed)),
    input_signature=[
        tf.TensorSpec((None, 4)),
        tf.TensorSpec((None,), tf.bool),
        tf.TensorSpec((2,), tf.int32),
        tf.TensorSpec((2,), tf.int32),
    ],
)


def boxes_in(rng, height, width, count):
    ends = np.sort(rng.uniform(0, [[width], [height]], (count, 2, 2)), axis=-1)  # (objects, axis, ends)
    return ends.transpose(0, 2, 1).reshape(-1, 4).astype(np.float32)


def image_of(rng, height, width):
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_zoom_out_is_torchvisions(size, torchvision):
    rng = np.random.default_rng(sum(size))
    for count in (0, 1, 30):
        image, boxes, draws = image_of(rng, *size), boxes_in(rng, *size, count), rng.random(3, np.float32)
        canvas, expected = torchvision.call("augmentations:zoomed_out", image, boxes, draws)
        top, left, height, width = zoom_out(tf.constant(size), tf.constant(draws)).numpy()
        assert (height, width) == canvas.shape[:2]
        np.testing.assert_array_equal(canvas[-top : size[0] - top, -left : size[1] - left], image)
        np.testing.assert_allclose(boxes - np.float32([left, top, left, top]), expected, atol=1e-4)


@pytest.mark.parametrize("size", [size for size in SIZES if size[0] > 3])  # torchvision fails on sides of 0
def test_the_iou_crop_is_torchvisions(size, torchvision):
    rng = np.random.default_rng(sum(size))
    seen = set()
    for case in range(24):
        count = (1, 3, 60)[case % 3]
        image, boxes = image_of(rng, *size), boxes_in(rng, *size, count)
        options = np.append(rng.integers(0, len(OPTIONS), ROUNDS - 1), len(OPTIONS) - 1).astype(np.int32)
        options[0] = case % len(OPTIONS)
        draws = rng.random((ROUNDS, TRIALS, 4), np.float32)
        crop, left, places = torchvision.call("augmentations:cropped", image, boxes, options, draws)
        window, kept = (value.numpy() for value in crop_of(boxes, np.ones(count, bool), size, options, draws))
        top, left_edge, height, width = window
        np.testing.assert_array_equal(image[top : top + height, left_edge : left_edge + width], crop)
        ours = np.clip(boxes - np.float32([left_edge, top] * 2), 0, np.float32([width, height] * 2))
        kept = kept & have_sides(ours, 1.0).numpy()
        np.testing.assert_array_equal(np.nonzero(kept)[0], places)
        np.testing.assert_allclose(ours[kept], left, atol=1e-4)
        seen.add(crop.shape[:2] == tuple(size))
    assert seen == {True, False}


def test_an_image_without_objects_or_with_crowds_alone_stays_whole(torchvision):
    size, rng = (48, 64), np.random.default_rng(1)
    options, draws = np.zeros(ROUNDS, np.int32), np.zeros((ROUNDS, TRIALS, 4), np.float32)  # would never end
    for count in (0, 3):
        window, kept = crop_of(boxes_in(rng, *size, count), np.zeros(count, bool), size, options, draws)
        np.testing.assert_array_equal(window, [0, 0, *size])
        assert kept.numpy().all()
    options[5] = len(OPTIONS) - 1
    image = image_of(rng, *size)
    crop, _, _ = torchvision.call("augmentations:cropped", image, boxes_in(rng, *size, 0), options, draws)
    np.testing.assert_array_equal(crop, image)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 2), (60, 80)])
def test_a_crop_ends_and_lies_in_its_image(size):
    rng, wholes = np.random.default_rng(0), 0
    for seed in range(40):
        boxes = np.float32([[0, 0, size[1], size[0]]]) if min(size) < 4 else boxes_in(rng, *size, 3)
        is_object = np.arange(len(boxes)) != 2
        window, kept = (value.numpy() for value in random_crop(boxes, is_object, size, (seed, 2)))
        top, left, height, width = window
        assert min(top, left) >= 0
        assert min(height, width) >= 1
        assert top + height <= size[0]
        assert left + width <= size[1]
        assert (kept & is_object).any()
        is_whole = (window == [0, 0, *size]).all()
        wholes += is_whole
        if not is_whole:
            assert 0.5 <= width / height <= 2
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = (centres > [left, top]).all(axis=1) & (centres < [left + width, top + height]).all(axis=1)
            np.testing.assert_array_equal(kept, inside)
    if size == (60, 80):
        assert 1 <= wholes <= 20  # a seventh at least


def test_how_often_each_option_is_drawn():
    rounds = tf.function(lambda seed: random_rounds(tf.stack([seed, 1]))(tf.constant(0)))
    options, draws = zip(*[rounds(tf.constant(seed)) for seed in range(700)], strict=True)
    counts = np.bincount(options, minlength=len(OPTIONS))
    assert (np.abs(counts - 100) < 45).all()  # 5 standard deviations
    assert OPTIONS[-1] == AS_IT_IS
    draws = np.stack(draws)
    assert 0 <= draws.min() < draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=(0, 1)), 0.5, atol=0.01)


def test_zoom_out_reaches_from_once_to_four_times_the_sides():
    size = tf.constant([100, 200])
    windows = np.array([zoom_out(size, tf.constant(draws)) for draws in np.float32([[0, 0.3, 0.9], [0.99999, 0, 1]])])
    np.testing.assert_array_equal(windows[0], [0, 0, 100, 200])
    np.testing.assert_array_equal(windows[0], whole(size))
    np.testing.assert_array_equal(windows[1], [-299, 0, 399, 799])
