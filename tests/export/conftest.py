"""Photographs, and what Keras finds in them."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from photograph_sizes import CANVAS, SIZE

import tfdetr_keras as td
from tfdetr_keras.data.images import decode_image
from tfdetr_keras.export import ServingGraph

PHOTOGRAPHS = 12
SCORE, PIXELS = 5e-5, 0.01  # measured: 8e-6
# Where runtimes add up in other orders, which depends on the processor, a level may be rounded to the other side.
OF_A_LEVEL, PIXELS_OF_A_LEVEL = 3e-3, 0.3  # measured: 5e-4, 0.03


@pytest.fixture(scope="session")
def photographs(coco128):
    """Of many sizes, upright and lying; and their files, without a camera's rotation note."""
    paths = sorted((coco128 / "images").glob("*.jpg"))[:PHOTOGRAPHS]
    return paths, [decode_image(path.read_bytes()) for path in paths]


@pytest.fixture(scope="session")
def detector():
    """The packaged model: its weights were trained, so that scores are of all sizes."""
    return td.DETR.from_pretrained("detr-tiny")


@pytest.fixture(scope="session")
def expected(detector, photographs):
    """What `td.detect` finds, by whether images are padded to a canvas."""

    def found(pad_to):
        records, _ = td.data.load_images(photographs[0])
        return list(td.detect(detector, records, SIZE, pad_to=pad_to, threshold=-1))

    return {False: found(None), True: found(CANVAS)}


@pytest.fixture(scope="session")
def by_matrices(detector, photographs):
    """What Keras finds where images are resized by matrices, and padded to a canvas or not.

    One level of one pixel that is rounded to the other side moves this small model's scores by up to 0.003 on
    photographs, which it never saw in training; so runtimes are compared behind the same resize.
    """

    @functools.cache
    def found(pad_to):
        graph = ServingGraph(detector, td.Preprocessing(SIZE, pad_to=pad_to), portable=True)
        results = [graph.of_pixels(tf.constant(image)[None]) for image in photographs[1]]
        return [{key: value[0].numpy() for key, value in result.items()} for result in results]

    return found


@pytest.fixture(scope="session")
def unresized(detector, photographs):
    """Parts of the size that the model sees, in which no level is rounded, and what Keras finds in them.

    Padded to a canvas or not.
    """
    parts = [image[: SIZE[0], -SIZE[1] :] for image in photographs[1] if image.shape[0] >= SIZE[0]]

    @functools.cache
    def found(pad_to):
        graph = ServingGraph(detector, td.Preprocessing(SIZE, pad_to=pad_to), portable=True)
        results = [graph.of_pixels(tf.constant(image)[None]) for image in parts]
        return [
            (image, {key: value[0].numpy() for key, value in one.items()})
            for image, one in zip(parts, results, strict=True)
        ]

    return found


@pytest.fixture
def assert_same():
    """Compares the detections of a runtime with Keras': scores to 5e-5, boxes to 0.01 pixels.

    With `rounded`, to what a level that is rounded to the other side may change.
    """

    def check(found, wanted, rounded=False):
        """`found`: arrays of one image, the highest score first; `wanted`: in any order."""
        most, pixels = (OF_A_LEVEL, PIXELS_OF_A_LEVEL) if rounded else (SCORE, PIXELS)
        assert (np.diff(found["scores"]) <= 0).all()
        assert len(found["scores"]) == len(wanted["scores"])
        np.testing.assert_allclose(found["scores"], np.sort(wanted["scores"])[::-1], rtol=0, atol=most)
        # Scores that hardly differ may change places.
        for score, label, box in zip(wanted["scores"], wanted["labels"], wanted["boxes"], strict=True):
            near = (np.abs(found["scores"] - score) < most) & (np.abs(found["boxes"] - box) < pixels).all(-1)
            assert near.any(), (score, box, found)
            assert score < 0.1 or label in found["labels"][near]

    return check
