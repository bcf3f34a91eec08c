"""Differences are those of pycocotools' figures; intervals are those of images drawn anew, drawn a second time here."""

import numpy as np
import pytest
from random_sets import random_set
from test_coco_scorer import refereed

from tfdetr_keras.evaluation.coco import coco_metrics
from tfdetr_keras.evaluation.comparison import compare_detections
from tfdetr_keras.visualize.comparison import draw_comparison

NAMES = ["bolt", "nut", "washer", "screw", "never seen"]


def two_models(seed, images=12):
    """Ground truth, the detections of one model, and those of another that is often off."""
    truths, found = random_set(seed, images)
    rng = np.random.default_rng(seed)
    worse = [image | {"boxes": image["boxes"] + rng.normal(0, 3, image["boxes"].shape)} for image in found]
    return truths, found, worse


@pytest.mark.parametrize("seed", range(20))
def test_differences_are_pycocotools(seed):
    truths, found, worse = two_models(seed)
    told = compare_detections(truths, found, worse, NAMES, resamples=0)
    for place, name in enumerate(
        ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    ):
        values = [refereed(truths, one, len(NAMES)).stats[place] for one in (found, worse)]
        one = told["metrics"][name]
        assert [one["first"], one["second"]] == pytest.approx(values, abs=1e-12)
        assert one["difference"] == (pytest.approx(values[1] - values[0], abs=1e-12) if min(values) >= 0 else None)
        assert "low" not in one
    per_class = [coco_metrics(truths, one, NAMES)["AP_per_class"] for one in (found, worse)]
    assert {name: [one["first"], one["second"]] for name, one in told["classes"].items()} == {
        name: [values[name] for values in per_class] for name in NAMES
    }
    assert told["classes"]["never seen"]["difference"] is None


def test_intervals_are_those_of_images_drawn_anew():
    truths, found, worse = two_models(0, images=40)
    told = compare_detections(truths, found, worse, NAMES, resamples=1000)["metrics"]["AP50"]
    rng, differences = np.random.default_rng(5), []
    for _ in range(400):
        drawn = rng.integers(0, len(truths), len(truths))
        sets = [
            [one[place] | {"image_id": number} for number, place in enumerate(drawn)] for one in (truths, found, worse)
        ]
        before, after = (coco_metrics(sets[0], one, NAMES)["AP50"] for one in sets[1:])
        differences.append(after - before)
    # Of 400 and of 1000 draws; a standard error of the ends is some 0.08 of the interval's length.
    length = told["high"] - told["low"]
    assert [told["low"], told["high"]] == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.25 * length)
    assert told["better"] == pytest.approx(np.mean(np.array(differences) > 0), abs=0.1)


def test_the_same_model_is_not_better():
    truths, found, _ = two_models(1)
    told = compare_detections(truths, found, found, NAMES, resamples=50)
    assert {(one["difference"], one.get("low", 0.0), one.get("high", 0.0)) for one in told["metrics"].values()} <= {
        (0.0, 0.0, 0.0),
        (None, 0.0, 0.0),
    }


def test_a_negative_number_of_draws_is_refused():
    truths, found, worse = two_models(1)
    with pytest.raises(ValueError, match="resamples must be at least 0, not -1"):
        compare_detections(truths, found, worse, NAMES, resamples=-1)


@pytest.mark.parametrize("resamples", [0, 20])
def test_a_picture(resamples, tmp_path):
    truths, found, worse = two_models(2)
    draw_comparison(compare_detections(truths, found, worse, NAMES, resamples=resamples), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
