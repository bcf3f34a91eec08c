"""Resizing by matrices against `prepare`'s, sizes in whole numbers, batches, files."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from photograph_sizes import CANVAS, SIZE
from some_slow import some_slow

import tfdetr_keras as td
from tfdetr_keras.data.canvas import factor_and_shift
from tfdetr_keras.data.sizes import Resize, target_size
from tfdetr_keras.export import serving_graph
from tfdetr_keras.export.serving_graph import ServingGraph


def graph_of(detector, pad_to=None, **options):
    return ServingGraph(detector, td.Preprocessing(SIZE, pad_to=pad_to), **options)


@given(old=st.integers(1, 90), new=st.integers(1, 90), beyond=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_interpolation_is_tensorflows_resize(old, new, beyond):
    for method, antialias in (("bilinear", True), ("bilinear", False), ("bicubic", True)):
        weights = serving_graph.interpolation_weights(old, new, new + beyond, method, antialias).numpy()
        expected = tf.image.resize(tf.eye(old)[:, None], (new, 1), method, antialias=antialias)[:, 0].numpy()
        # Places of up to 90 in float32, which are added up in another order where nothing is smoothed, or cubed.
        tolerance = 1e-5 if (method, antialias) == ("bilinear", True) else 5e-5
        np.testing.assert_allclose(weights[:new], expected, rtol=0, atol=tolerance)
        assert not weights[new:].any()


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), strict=st.booleans())
@settings(max_examples=300, deadline=None)
def test_whole_sizes_are_huggingfaces_but_for_a_pixel_of_the_longer_side(height, width, strict):
    resize = Resize(800, 1333, strict=strict)
    found = [int(x) for x in serving_graph.whole_target_size(tf.constant(height), tf.constant(width), resize)]
    wanted = [int(x) for x in target_size(height, width, resize)]
    if max(wanted) < 1332:
        assert found == wanted
    assert np.abs(np.subtract(found, wanted)).max() <= 1
    assert min(found) == min(wanted)


def test_pixels_are_those_of_prepare(photographs):
    paths, images = photographs
    records, _ = td.data.load_images(paths)
    for image, (inputs, _) in zip(images, td.data.prepare(records, 1, size=SIZE), strict=True):
        size = tf.stack(target_size(*image.shape[:2], Resize(*SIZE)))
        factor, shift = factor_and_shift(td.Preprocessing())
        found = serving_graph.resized_by_matrices(tf.constant(image)[None], size, size) * factor - shift
        level = 1 / (255 * 0.225)
        difference = np.abs(found - inputs["pixel_values"])
        assert difference.max() < 1.01 * level
        assert (difference > 0.5 * level).mean() < 1e-4  # halves that are rounded to the other side


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("pad_to", [None, CANVAS])
def test_a_batch_is_its_images(detector, photographs, pad_to, portable):
    image = photographs[1][0]
    graph = graph_of(detector, pad_to, portable=portable)
    batch = np.stack([image, image[::-1], image[:, ::-1]])
    together = graph.of_pixels(tf.constant(batch))
    for place in range(3):
        alone = graph.of_pixels(tf.constant(batch[place : place + 1]))
        for key in ("scores", "boxes"):
            np.testing.assert_allclose(together[key][place], alone[key][0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("pad_to", [None, pytest.param(CANVAS, marks=pytest.mark.slow)])
def test_files_are_their_pixels(detector, photographs, pad_to):
    paths, images = photographs
    graph = graph_of(detector, pad_to)
    for path, image in zip(paths, images, strict=True):
        found, wanted = graph.of_files(tf.constant([path.read_bytes()])), graph.of_pixels(tf.constant(image)[None])
        np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=0, atol=1e-5)
    together = graph.of_files(tf.constant([path.read_bytes() for path in paths[:4]]))
    assert together["boxes"].shape == (4, detector.config.num_queries, 4)
    sizes = np.array([image.shape[1::-1] for image in images[:4]])
    assert (together["boxes"].numpy().max((1, 2)) < 1.5 * sizes.max(1)).all()


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), rule=st.sampled_from(["fit", "stretch"]))
@settings(max_examples=300, deadline=None)
def test_whole_sizes_are_those_of_rectangles(height, width, rule):
    resize = Resize(480, 640, rule)
    found = [int(x) for x in serving_graph.whole_target_size(tf.constant(height), tf.constant(width), resize)]
    wanted = [int(x) for x in target_size(height, width, resize)]
    # What float64 makes a little less than a whole number is truncated by the reference.
    assert set(np.subtract(found, wanted).tolist()) <= ({0} if rule == "stretch" else {0, 1})
    assert found[0] <= 480
    assert found[1] <= 640


OWN = td.Preprocessing((60, 90), "fit", None, 1.0, (120.0, 110.0, 100.0), (60.0, 61.0, 62.0), "bicubic", True, 32)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("pad_to", some_slow([None, (96, 96)], None))
def test_images_are_prepared_as_the_model_has_it(detector, photographs, pad_to, portable):
    """Levels, interpolation and canvas: what the graph finds is what `td.detect` finds."""
    own = dataclasses.replace(OWN, pad_to=pad_to)
    graph = ServingGraph(detector, own, portable=portable)
    paths, images = photographs[0][:4], photographs[1][:4]
    records, _ = td.data.load_images(paths)
    wanted = td.detect(detector, records, threshold=-1, preprocessing=own)
    compared = 0
    for path, image, one in zip(paths, images, wanted, strict=True):
        if portable and _size_of(image, own, whole=True) != _size_of(image, own, whole=False):
            continue  # where float64 makes a side a little less than whole, the reference has a pixel less
        compared += 1
        answers = [graph.of_pixels(tf.constant(image)[None])]
        answers += [] if portable else [graph.of_files(tf.constant([path.read_bytes()]))]
        for found in answers:
            np.testing.assert_allclose(found["scores"][0], np.sort(one["scores"])[::-1], rtol=0, atol=0.02)
    assert compared


def _size_of(image, preprocessing, whole):
    target = serving_graph.whole_target_size if whole else target_size
    height, width = (tf.constant(side) for side in image.shape[:2])
    return [int(side) for side in target(height, width, Resize.of(preprocessing))]


@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
@settings(max_examples=300, deadline=None)
def test_whole_sizes_are_table_transformers(height, width):
    resize = Resize(800, 1000, "table")
    found = [int(x) for x in serving_graph.whole_target_size(tf.constant(height), tf.constant(width), resize)]
    wanted = [int(x) for x in target_size(height, width, resize)]
    halved = (2 * 1000 * min(height, width)) % max(height, width) == 0  # may be a half, which float64 misses
    assert np.abs(np.subtract(found, wanted)).max() <= halved
    assert max(found) == 1000


@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_detections_are_those_of_post_process_clipped_to_the_image(classification):
    rng = np.random.default_rng(0)
    outputs = {"logits": rng.normal(size=(3, 40, 5)).astype("f"), "pred_boxes": rng.random((3, 40, 4)).astype("f")}
    sizes = np.array([[40, 60], [10, 10], [200, 30]], np.int32)
    tensors = {key: tf.constant(value) for key, value in outputs.items()}
    found = serving_graph.detections(tensors, tf.constant(sizes), tf.ones((3, 2)), classification)
    assert found.keys() == {"scores", "labels", "boxes"}
    assert found["scores"].shape == (3, 100 if classification == "focal" else 40)
    for place, wanted in enumerate(td.post_process(outputs, sizes, -1, classification)):
        order = np.argsort(-wanted["scores"], kind="stable")
        np.testing.assert_allclose(found["scores"][place], wanted["scores"][order], rtol=0, atol=5e-7)
        np.testing.assert_array_equal(found["labels"][place], wanted["labels"][order])
        boxes = np.clip(wanted["boxes"][order], 0, np.tile(sizes[place, ::-1], 2))
        assert (boxes != wanted["boxes"][order]).any()
        np.testing.assert_allclose(found["boxes"][place], boxes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", ["huggingface", "table", "fit", "stretch"])
def test_an_image_that_the_canvas_does_not_hold_becomes_as_small_as_in_training(rule):
    """Upright ones, to the pixel that a limit in whole numbers may differ by, and never larger than the canvas."""
    resize = Resize.of(td.Preprocessing((48, 80), rule, pad_to=(48, 64)))
    grid = np.meshgrid(np.arange(20, 300, 7, np.int32), np.arange(20, 300, 9, np.int32))
    height, width = (tf.constant(side.ravel()) for side in grid)
    wanted = np.stack(target_size(height, width, resize))
    portable = serving_graph.whole_target_size(height, width, resize)
    found = np.stack(serving_graph.fitted(*portable, resize.canvas))
    assert np.abs(found - wanted).max() <= 1
    assert (found <= [[48], [64]]).all()
    assert (found >= 1).all()
