"""Detections in pixels, against transformers' own post-processing of the same outputs."""

import keras
import numpy as np
import pytest

from tfdetr_keras.inference.postprocess import post_process

SIZES = np.array([[480, 640], [427, 333], [1, 1000]])


def random_outputs(seed, batch=3, queries=25, classes=7):
    """Logits wide enough that scores spread over (0, 1), and boxes that may stick out of the image."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(batch, queries, classes + 1)).astype(np.float32)
    return {"logits": logits, "pred_boxes": rng.uniform(size=(batch, queries, 4)).astype(np.float32)}


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_transformers_finds_the_same(threshold, pytorch):
    outputs = random_outputs(seed=int(threshold * 10))
    reference = pytorch.call("processors:detections", outputs, SIZES, threshold)
    detections = post_process(outputs, SIZES, threshold)
    assert len(detections) == len(reference)
    for got, expected in zip(detections, reference, strict=True):
        np.testing.assert_array_equal(got["labels"], expected["labels"])
        np.testing.assert_allclose(got["scores"], expected["scores"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(got["boxes"], expected["boxes"], rtol=1e-6, atol=1e-4)


def test_dtypes_and_tensors_of_the_backend():
    outputs = {name: keras.ops.convert_to_tensor(value) for name, value in random_outputs(seed=0).items()}
    for detection in post_process(outputs, keras.ops.convert_to_tensor(SIZES), threshold=0.3):
        assert {name: str(value.dtype) for name, value in detection.items()} == {
            "scores": "float32",
            "labels": "int64",
            "boxes": "float32",
        }
        assert detection["boxes"].shape == (len(detection["scores"]), 4)


def test_a_score_at_the_threshold_is_left_out():
    """Two equal logits of two classes and no-object never: both have a probability of exactly one half."""
    outputs = {"logits": np.array([[[0.0, 0.0, -np.inf]]]), "pred_boxes": np.full((1, 1, 4), 0.5)}
    assert len(post_process(outputs, [[10, 10]], threshold=0.5)[0]["scores"]) == 0
    below = post_process(outputs, [[10, 10]], threshold=np.nextafter(0.5, 0))[0]
    np.testing.assert_array_equal(below["scores"], [0.5])


def test_boxes_are_in_pixels_of_the_given_size():
    outputs = {"logits": np.array([[[9.0, 0.0]]]), "pred_boxes": np.array([[[0.5, 0.25, 0.5, 0.25]]])}
    (detection,) = post_process(outputs, [[400, 800]])  # height, width
    np.testing.assert_array_equal(detection["boxes"], [[200, 50, 600, 150]])


def test_nothing_found_is_empty_arrays():
    outputs = random_outputs(seed=1)
    outputs["logits"][..., -1] = 50
    for detection in post_process(outputs, SIZES):
        assert {name: value.shape for name, value in detection.items()} == {
            "scores": (0,),
            "labels": (0,),
            "boxes": (0, 4),
        }


@pytest.mark.parametrize("sizes", [[[480, 640]], [480, 640, 3], np.ones((3, 3)), np.ones((4, 2)), []])
def test_sizes_need_a_row_for_each_image(sizes):
    with pytest.raises(ValueError, match=r"target_sizes must be \(height, width\) for each of the 3 images, not of"):
        post_process(random_outputs(seed=0), sizes)
