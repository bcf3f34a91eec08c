import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdetr_keras.data import load_shapes
from tfdetr_keras.data.augmentation import RECIPES
from tfdetr_keras.data.sizes import Resize
from tfdetr_keras.data.transforms import color_jitter, crop, flip_horizontally, resize
from tfdetr_keras.data.zoom_and_crop import iou_crop, random_rounds

SIZE = (80, 133)


def drawn(seed, height, width, objects):
    """A record whose every object is one rectangle of a colour of its own, with its mask; float positions."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, [[height + 1], [width + 1]], (objects, 2, 2)), axis=-1)  # (objects, axis, ends)
    corners = corners[(corners[:, :, 1] > corners[:, :, 0]).all(axis=1)]
    masks = np.zeros((len(corners), height, width), bool)
    image = np.zeros((height, width, 3), np.uint8)
    for place, ((top, bottom), (left, right)) in enumerate(corners):
        masks[place, top:bottom, left:right] = True
        image[top:bottom, left:right] = rng.integers(1, 256, 3)
    boxes = corners[:, [1, 0], :].transpose(0, 2, 1).reshape(-1, 4).astype(np.float32)  # x1 y1 x2 y2
    return {
        "image": tf.constant(image),
        "image_id": tf.constant(seed, tf.int64),
        "orig_size": tf.constant([height, width]),
        "boxes": tf.constant(boxes),
        "labels": tf.range(len(corners)),  # an object's label is its first row: it can be found again
        "iscrowd": tf.constant(rng.random(len(corners)) < 0.2),
        "area": tf.constant(masks.sum(axis=(1, 2)), tf.float32),
        "masks": tf.constant(masks),
    }


GRAPHS = {}


def applied(name, record, seed):
    """One graph per recipe for all sizes, as in a pipeline."""
    if name not in GRAPHS:
        spec = {key: tf.TensorSpec([None] * value.shape.rank, value.dtype) for key, value in record.items()}
        spec["image"], spec["boxes"] = tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((None, 4))
        GRAPHS[name] = tf.function(
            lambda record, seed: RECIPES[name](record, seed, Resize(*SIZE, strict=True)),
            input_signature=[spec, tf.TensorSpec((2,), tf.int64)],
        )
    return {key: value.numpy() for key, value in GRAPHS[name](record, tf.constant(seed, tf.int64)).items()}


@pytest.mark.parametrize("name", sorted(RECIPES))
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 150), width=st.integers(1, 150), objects=st.integers(0, 8))
def test_boxes_masks_and_labels_stay_together(name, seed, height, width, objects):
    record = drawn(seed, height, width, objects)
    found = applied(name, record, (seed, 1))
    new_height, new_width = found["image"].shape[:2]
    assert min(new_height, new_width) >= 1
    assert max(new_height, new_width) <= SIZE[1]
    assert np.isfinite(found["image"]).all()
    assert (found["image"] == np.round(found["image"])).all()
    assert 0 <= found["image"].min() <= found["image"].max() <= 255
    count = len(found["labels"])
    assert {len(found[key]) for key in ("boxes", "iscrowd", "area", "masks")} == {count}
    assert found["masks"].shape == (count, new_height, new_width)
    boxes = found["boxes"]
    assert np.isfinite(boxes).all()
    assert (boxes >= 0).all()
    assert (boxes <= np.array([new_width, new_height] * 2) + 1e-3).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (found["area"] > 0).all()
    assert len(set(found["labels"].tolist())) == count
    crowds = record["iscrowd"].numpy()
    scale = max(new_height / height, new_width / width, 1)
    for row, label in enumerate(found["labels"]):
        assert found["iscrowd"][row] == crowds[label]
        ys, xs = np.nonzero(found["masks"][row])
        if len(xs):  # nearest pixels: within a source pixel of the box
            tight = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert np.abs(tight - boxes[row]).max() <= scale + 1
    if name not in ("paper", "strong"):  # which crop
        assert count == len(record["labels"])
    again = applied(name, record, (seed, 1))
    for key in found:
        np.testing.assert_array_equal(found[key], again[key])


def test_the_recipe_of_the_paper_in_numbers():
    """At 800/1333, of 400 draws: the eleven scales, half of them crops, and the crops' sides."""
    record = next(iter(load_shapes(1, size=(240, 240))[0]))
    edges, crops, flips = [], 0, 0
    graph = tf.function(
        lambda seed: RECIPES["paper"](record | {"boxes": boxes, **rest}, seed, Resize(800, 1333, "facebook"))
    )
    # One box over the left half: its width tells the crop, its side the flip.
    boxes = tf.constant([[0.0, 0.0, 120.0, 240.0]])
    rest = {"labels": tf.zeros(1, tf.int32), "iscrowd": tf.zeros(1, tf.bool), "area": tf.ones(1)}
    record = {key: record[key] for key in ("image", "image_id", "orig_size")}
    for seed in range(400):
        found = graph(tf.constant([seed, 5], tf.int64))
        height, width = found["image"].shape[:2]
        edges.append(min(height, width))
        whole = height == width and len(found["boxes"]) and abs(found["area"][0] - 1 * (height / 240) ** 2) < 1e-3
        crops += not whole
        if whole:
            flips += bool(found["boxes"][0, 0] > 1)
    assert set(edges) == set(range(480, 801, 32))
    assert 160 < crops < 240
    assert 0.35 < flips / (400 - crops) < 0.65


def test_the_strong_recipe_in_numbers():
    """Of 2000 draws: how many are mirrored, and how many neither zoomed nor cropped."""
    number, side, plain = 2000, 48, np.float32([[8, 12, 20, 36], [30, 12, 44, 40]])
    record = {
        "image": tf.fill((side, side, 3), tf.constant(200, tf.uint8)),
        "boxes": tf.constant(plain),
        "labels": tf.range(2),
        "iscrowd": tf.zeros(2, tf.bool),
        "area": tf.ones(2),
    }

    @tf.function
    def recipe(seed):
        found = RECIPES["strong"](record, tf.stack([seed, 5]), Resize(side, side, "stretch"))
        rows = tf.concat([tf.cast(found["labels"], tf.float32)[:, None], found["boxes"]], axis=1)
        black = tf.reduce_all(found["image"] == 0, axis=-1)
        return tf.pad(rows, [[0, 2 - tf.shape(rows)[0]], [0, 0]], constant_values=-1.0), tf.reduce_any(black)

    @tf.function
    def stays_whole(seed):
        window, _ = iou_crop(record["boxes"], tf.ones(2, tf.bool), tf.constant([side, side]), random_rounds(seed))
        return tf.reduce_all(window == [0, 0, side, side])

    seeds = tf.data.Dataset.range(number).map(lambda seed: tf.cast(seed, tf.int32))
    rows, black = (np.stack(values) for values in zip(*seeds.map(recipe).as_numpy_iterator(), strict=True))
    both = (rows[:, :, 0] >= 0).all(axis=1)
    mirrored = rows[both, 0, 1] > rows[both, 1, 1]
    assert abs(mirrored.mean() - 0.5) < 0.05
    assert (rows[:, 0, 0] >= 0).mean() > 0.95  # an object is left, unless it became smaller than a pixel
    untouched = np.abs(rows[both, :, 2] - plain[:, 1]).max(axis=1) < 1e-3
    untouched &= np.abs(rows[both, :, 4] - plain[:, 3]).max(axis=1) < 1e-3
    uncropped = np.mean([stays_whole(tf.constant([seed, 9])) for seed in range(400)])
    assert abs(untouched.sum() / number - 0.5 * (0.2 + 0.8 * uncropped)) < 0.06
    assert 0.3 < black.mean() < 0.5  # half are zoomed out, and of some of those the crop shows the image alone


def test_strong_takes_images_without_objects_and_leaves_out_boxes_below_a_pixel():
    empty = {
        key: value[:0] if key in ("boxes", "labels", "iscrowd", "area", "masks") else value
        for key, value in drawn(1, 30, 40, 4).items()
    }
    for seed in range(8):
        found = applied("strong", empty, (seed, 3))
        assert found["image"].dtype == np.uint8
        assert len(found["boxes"]) == len(found["masks"]) == 0
    small = drawn(1, 60, 60, 0) | {
        "boxes": tf.constant([[10.0, 10.0, 10.5, 30.0], [5.0, 5.0, 50.0, 50.0]]),
        "labels": tf.constant([0, 1]),
        "iscrowd": tf.zeros(2, tf.bool),
        "area": tf.ones(2),
        "masks": tf.ones((2, 60, 60), tf.bool),
    }
    for seed in range(8):
        assert set(applied("strong", small, (seed, 3))["labels"].tolist()) <= {1}


def test_a_crop_by_hand():
    record = {
        "image": tf.constant(np.arange(6 * 8 * 3).reshape(6, 8, 3), tf.uint8),
        "boxes": tf.constant([[0.0, 0.0, 4.0, 4.0], [3.0, 1.0, 8.0, 6.0], [0.0, 0.0, 2.0, 6.0]]),
        "labels": tf.constant([5, 6, 7]),
        "iscrowd": tf.constant([False, True, False]),
        "area": tf.constant([8.0, 20.0, 12.0]),
    }
    found = crop(record, tf.constant([1, 2, 4, 5]))
    np.testing.assert_array_equal(found["image"], record["image"][1:5, 2:7])
    np.testing.assert_array_equal(
        found["boxes"], [[0, 0, 2, 3], [1, 0, 5, 4]]
    )  # the third ends where the window begins
    np.testing.assert_array_equal(found["labels"], [5, 6])
    np.testing.assert_array_equal(found["iscrowd"], [False, True])
    np.testing.assert_allclose(found["area"], [8 * 6 / 16, 20 * 16 / 25])


def test_colours_change_and_nothing_else():
    record = next(iter(load_shapes(1)[0]))
    seeds = [tf.constant([seed, 3]) for seed in range(12)]
    jittered = [color_jitter(record, seed) for seed in seeds]
    for found in jittered:
        assert found["image"].dtype == tf.uint8
        assert {key for key in record if found[key] is not record[key]} == {"image"}
    means = np.array([tf.reduce_mean(tf.cast(found["image"], tf.float32)).numpy() for found in jittered])
    assert means.std() > 3
    np.testing.assert_array_equal(color_jitter(record, seeds[4])["image"], jittered[4]["image"])


def test_masks_follow_flip_and_resize():
    record = drawn(3, 40, 60, 5)
    flipped = flip_horizontally(record)
    np.testing.assert_array_equal(flipped["masks"], record["masks"].numpy()[:, :, ::-1])
    doubled = resize(record, tf.constant([80, 120]))
    np.testing.assert_array_equal(doubled["masks"], record["masks"].numpy().repeat(2, axis=1).repeat(2, axis=2))
