"""Detections of models with a sigmoid per class, against transformers' Conditional DETR on the same outputs."""

import keras
import numpy as np
import pytest

from tfdetr_keras.inference.postprocess import post_process

SIZES = np.array([[480, 640], [427, 333], [1, 1000]])
# Where scores are as close as that, sigmoids of different libraries may order them differently; and of equal scores
# `torch.topk` promises no order. `post_process` takes the earlier query first, then the lower label.
CLOSE = 1e-6


def random_outputs(seed, batch=3, queries=25, classes=7, levels=None):
    """Random logits, or of a few levels only, which makes ties; and boxes that may stick out of the image."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (batch, queries, classes))
    if levels is not None:
        logits = rng.choice(levels, (batch, queries, classes))
    boxes = rng.uniform(size=(batch, queries, 4))
    return {"logits": logits.astype(np.float32), "pred_boxes": boxes.astype(np.float32)}


def rows_of(found, rows):
    """Label and box of some detections, in an order of their own; boxes to a thousandth of a pixel."""
    return sorted(
        (int(label), *np.round(box.astype(float), 3).tolist())
        for label, box in zip(found["labels"][rows], found["boxes"][rows], strict=True)
    )


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("top_k", [1, 20, 100, 1000])
def test_transformers_finds_the_same(threshold, top_k, pytorch):
    for seed in range(10):
        outputs = random_outputs(seed)
        detections = post_process(outputs, SIZES, threshold, classification="focal", top_k=top_k)
        reference = pytorch.call("processors:conditional_detections", outputs, SIZES, threshold, top_k)
        for got, expected in zip(detections, reference, strict=True):
            np.testing.assert_array_equal(got["labels"], expected["labels"])
            np.testing.assert_allclose(got["scores"], expected["scores"], rtol=0, atol=CLOSE)
            np.testing.assert_allclose(got["boxes"], expected["boxes"], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("levels", [[-1.0, 1.0], [0.25, 0.5, 2.0], [20.0, 30.0], [-200.0, 200.0]])
@pytest.mark.parametrize("top_k", [10, 60])
def test_ties_hold_the_same_detections_in_any_order(levels, top_k, pytorch):
    everything = 25 * 7
    for seed in range(10):
        outputs = random_outputs(seed, levels=levels)
        detections = post_process(outputs, SIZES, 0.1, classification="focal", top_k=top_k)
        candidates = post_process(outputs, SIZES, -1.0, classification="focal", top_k=everything)
        reference = pytorch.call("processors:conditional_detections", outputs, SIZES, 0.1, top_k)
        for got, expected, all_ in zip(detections, reference, candidates, strict=True):
            np.testing.assert_allclose(got["scores"], expected["scores"], rtol=0, atol=CLOSE)
            assert (np.diff(got["scores"]) <= 0).all()
            for score in np.unique(got["scores"]):
                same = np.abs(got["scores"] - score) < CLOSE
                if len(got["scores"]) < top_k or score > got["scores"].min() + CLOSE:
                    assert rows_of(got, same) == rows_of(expected, same)
                else:  # top_k cuts through these: which of them come out is free, but it must be some of them
                    tied = rows_of(all_, np.abs(all_["scores"] - score) < CLOSE)
                    for rows in (rows_of(got, same), rows_of(expected, same)):
                        assert len(rows) == len(set(rows))
                        assert set(rows) <= set(tied)


def test_of_equal_scores_the_earlier_query_and_the_lower_label_come_first():
    logits = np.zeros((1, 3, 2), np.float32)
    logits[0, 2, 1] = 1
    boxes = np.array([[[0.5, 0.5, 0.1 * width, 0.1] for width in (1, 2, 3)]], np.float32)
    [found] = post_process({"logits": logits, "pred_boxes": boxes}, [[100, 100]], 0.2, "focal", top_k=4)
    np.testing.assert_array_equal(found["labels"], [1, 0, 1, 0])
    widths = found["boxes"][:, 2] - found["boxes"][:, 0]
    np.testing.assert_allclose(widths, [30, 10, 10, 20], rtol=1e-5)


def test_a_query_may_speak_for_several_classes():
    outputs = {"logits": np.array([[[4.0, 3.0, -4.0]]]), "pred_boxes": np.full((1, 1, 4), 0.5)}
    [found] = post_process(outputs, [[10, 10]], classification="focal")
    np.testing.assert_array_equal(found["labels"], [0, 1])
    np.testing.assert_array_equal(found["boxes"][0], found["boxes"][1])


def test_a_score_at_the_threshold_is_left_out():
    outputs = {"logits": np.zeros((1, 1, 1)), "pred_boxes": np.full((1, 1, 4), 0.5)}
    assert len(post_process(outputs, [[10, 10]], 0.5, "focal")[0]["scores"]) == 0
    assert len(post_process(outputs, [[10, 10]], np.nextafter(0.5, 0), "focal")[0]["scores"]) == 1


def test_dtypes_and_tensors_of_the_backend():
    outputs = {name: keras.ops.convert_to_tensor(value) for name, value in random_outputs(seed=0).items()}
    for threshold in (0.3, 1.0):
        for found in post_process(outputs, keras.ops.convert_to_tensor(SIZES), threshold, "focal"):
            assert {name: str(value.dtype) for name, value in found.items()} == {
                "scores": "float32",
                "labels": "int64",
                "boxes": "float32",
            }
            assert found["boxes"].shape == (len(found["scores"]), 4)


def test_options_are_checked():
    outputs = random_outputs(seed=0)
    names = "'softmax', 'focal', 'varifocal', 'matchability_aware', 'iou_aware'"
    known = rf"classification must be one of \({names}\), not 'sigmoid'"
    with pytest.raises(ValueError, match=known):
        post_process(outputs, SIZES, classification="sigmoid")
    with pytest.raises(ValueError, match="top_k must be at least 1, not 0"):
        post_process(outputs, SIZES, classification="focal", top_k=0)
    with pytest.raises(ValueError, match=r"target_sizes must be \(height, width\) for each of the 3 images, not of"):
        post_process(outputs, SIZES[:2], classification="focal")
