import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfdetr_keras.data import load_coco
from tfdetr_keras.data.sizes import Resize
from tfdetr_keras.data.transforms import resize, resized_levels
from tfdetr_keras.data.windows import resize_window, window_levels

SPEC = {
    "image": tf.TensorSpec((None, None, 3), tf.uint8),
    "boxes": tf.TensorSpec((None, 4), tf.float32),
    "labels": tf.TensorSpec((None,), tf.int32),
    "iscrowd": tf.TensorSpec((None,), tf.bool),
    "area": tf.TensorSpec((None,), tf.float32),
    "masks": tf.TensorSpec((None, None, None), tf.bool),
}
FILTERS = [("bilinear", True), ("bilinear", False), ("bicubic", True), ("bicubic", False)]
GRAPHS = {}


def composed(record, window, size, interpolation="bilinear", antialias=True):
    """One graph per filter; the size goes in as "stretch" asks for it."""
    how = interpolation, antialias
    if how not in GRAPHS:
        GRAPHS[how] = tf.function(
            lambda record, window, size: resize_window(
                record, window, Resize(size[0], size[1], "stretch", False, interpolation, antialias)
            ),
            input_signature=[SPEC, tf.TensorSpec((4,), tf.int32), tf.TensorSpec((2,), tf.int32)],
        )
    found = GRAPHS[how](record, tf.constant(window), tf.constant(size))
    return {key: value.numpy() for key, value in found.items()}


def painted(record, window):
    """The slow way: the image on a canvas that holds it and the window, which is then cut out."""
    top, left, height, width = window
    image, masks = record["image"], record["masks"]
    before = [
        (max(-top, 0), max(top + height - image.shape[0], 0)),
        (max(-left, 0), max(left + width - image.shape[1], 0)),
    ]
    rows, columns = slice(max(top, 0), max(top, 0) + height), slice(max(left, 0), max(left, 0) + width)
    return record | {
        "image": np.pad(image, [*before, (0, 0)])[rows, columns],
        "masks": np.pad(masks, [(0, 0), *before])[:, rows, columns],
        "boxes": np.clip(record["boxes"] - np.float32([left, top] * 2), 0, np.float32([width, height] * 2)),
    }


def drawn(rng, height, width):
    """A record of noise, where every pixel counts, with one object."""
    top, left = rng.integers(height), rng.integers(width)
    masks = np.zeros((1, height, width), bool)
    masks[0, top : height // 2 + top, left : width // 2 + left] = True
    box = np.float32([[left, top, min(width // 2 + left + 1, width), min(height // 2 + top + 1, height)]])
    return {
        "image": rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        "boxes": box,
        "labels": np.zeros(1, np.int32),
        "iscrowd": np.zeros(1, bool),
        "area": np.ones(1, np.float32),
        "masks": masks,
    }


@pytest.mark.parametrize(("interpolation", "antialias"), FILTERS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 70), width=st.integers(1, 70), zooms=st.booleans())
def test_a_window_is_what_painting_cutting_and_resizing_gives(interpolation, antialias, seed, height, width, zooms):
    rng = np.random.default_rng(seed)
    record = drawn(rng, height, width)
    lowest, highest = ((-3 * height, -3 * width), (height, width)) if zooms else ((0, 0), (height, width))
    corner = rng.integers(lowest, np.maximum(np.array(highest), 1))
    limit = np.array([4 * height, 4 * width]) if zooms else np.array([height, width]) - corner
    sides = rng.integers(1, np.maximum(limit, 1) + 1)
    window, size = [*corner.tolist(), *sides.tolist()], rng.integers(1, 90, 2).tolist()
    expected = resize(
        {key: tf.constant(value) for key, value in painted(record, window).items()},
        tf.constant(size),
        interpolation,
        antialias,
    )
    found = composed(record, window, size, interpolation, antialias)
    differences = np.abs(found["image"].astype(int) - expected["image"].numpy())
    # Pillow's bicubic rounds between its passes, so that a rounded pixel differs by what the second makes of a level.
    assert differences.max() <= (1 if interpolation == "bilinear" else 2)
    np.testing.assert_array_equal(found["masks"], expected["masks"])
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=1e-4)


def test_a_zoomed_out_photograph_is_pils(coco128):
    """At the recipe's size, by Pillow, which the authors use."""
    records, _ = load_coco(coco128 / "images", coco128 / "annotations/instances_train2017.json")
    for place, record in enumerate(records.take(6).as_numpy_iterator()):
        height, width = record["image"].shape[:2]
        window = [-(place * height) // 4, -width // 2, height * (10 + 4 * place) // 10, width * (12 + 4 * place) // 10]
        record["masks"] = np.zeros((len(record["labels"]), height, width), bool)
        canvas = Image.fromarray(painted(record, window)["image"])
        expected = np.asarray(canvas.resize((640, 640), Image.Resampling.BILINEAR)).astype(int)
        differences = np.abs(composed({key: record[key] for key in SPEC}, window, (640, 640))["image"] - expected)
        assert differences.max() <= 1
        assert differences.mean() < 0.25


@pytest.mark.parametrize("side", [40, 50, 77])
def test_a_white_image_far_away_fades_as_if_it_were_painted(side):
    """Its edges are where black that is left out would be missed."""
    image = np.full((200, 200, 3), 255, np.uint8)
    canvas = np.pad(image, [(300, 300), (310, 290), (0, 0)])
    expected = resized_levels(tf.constant(canvas), tf.constant([side, side]))
    found = window_levels(
        tf.constant(image), tf.constant([-300, -310, 800, 800]), tf.constant([side] * 2), "bilinear", True
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_whole_image_is_the_plain_resize():
    record = drawn(np.random.default_rng(3), 40, 60)
    for size in [(80, 120), (20, 30), (40, 60)]:
        expected = resize({key: tf.constant(value) for key, value in record.items()}, tf.constant(size))
        found = composed(record, [0, 0, 40, 60], size)
        for key, value in found.items():
            np.testing.assert_array_equal(value, expected[key])
