"""Levels, points and proposals in ONNX Runtime and LiteRT: what Keras finds, on a canvas and, in ONNX, on any size."""

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from test_litert import run

import tfdetr_keras as td
from tfdetr_keras import export
from tfdetr_keras.export import ServingGraph

pytestmark = pytest.mark.slow

SIDE = 64
# Measured: scores 1e-7, boxes in pixels 2.7e-5.
SCORE, PIXELS = 9e-7, 2.5e-4


@pytest.fixture(scope="module", params=[False, True], ids=["learned queries", "proposals"])
def model(request):
    """All weights at random; of a hundred and more queries and classes the scores differ."""
    keras.utils.set_random_seed(0)
    model = td.from_preset("deformable-detr-tiny", num_classes=3, num_queries=20, two_stage=request.param)
    for weight in model.weights:
        if "moving" not in weight.path:
            weight.assign(weight + keras.random.normal(weight.shape, stddev=0.05))
    return model


def images_of(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3)).astype(np.uint8) for height, width in sizes]


def assert_same(found, wanted, score=SCORE):
    scores = np.sort(wanted["scores"])[::-1]
    np.testing.assert_allclose(np.sort(found["scores"])[::-1], scores, rtol=0, atol=score)
    mine, theirs = (np.argsort(-one["scores"], kind="stable") for one in (found, wanted))
    clear = np.abs(np.diff(scores, prepend=2.0, append=-1.0))
    clear = np.minimum(clear[:-1], clear[1:]) > 10 * score  # others may stand in another order
    assert clear.sum() >= 15
    np.testing.assert_allclose(found["boxes"][mine][clear], wanted["boxes"][theirs][clear], rtol=0, atol=PIXELS)
    np.testing.assert_array_equal(found["labels"][mine][clear], wanted["labels"][theirs][clear])


def wanted_of(model, image, preprocessing, portable=True):
    """Return what Keras finds; images are resized as in ONNX and LiteRT, or as in a SavedModel."""
    graph = ServingGraph(model, preprocessing, portable=portable)
    return {name: value[0].numpy() for name, value in graph.of_pixels(tf.constant(image)[None]).items()}


def test_onnx_runtime_finds_what_keras_finds(model, tmp_path):
    preprocessing = td.Preprocessing((SIDE, SIDE + 32))
    path = export.onnx(model, tmp_path / "model.onnx", preprocessing=preprocessing)
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    for image in images_of((64, 96), (96, 64), (64, 64)):
        found = dict(zip(names, (x[0] for x in session.run(names, {"images": image[None]})), strict=True))
        assert_same(found, wanted_of(model, image, preprocessing))


def test_litert_finds_what_keras_finds(model, tmp_path):
    preprocessing = td.Preprocessing((SIDE, SIDE), pad_to=(SIDE, SIDE))
    path = export.litert(model, tmp_path / "model.tflite", preprocessing=preprocessing)
    for image in images_of((64, 64), (64, 48)):
        found = {name: value[0] for name, value in run(path, image[None]).items()}
        assert_same(found, wanted_of(model, image, preprocessing))
