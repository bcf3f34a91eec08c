"""Is one detector better than another? Differences on the same images, and how far chance could have made them.

Source:
    Intervals by resampling images: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import hotcoco

from tfdetr_keras.data.class_names import UNUSED_NAME, distinct_names
from tfdetr_keras.evaluation.coco import check_max_detections, metrics_of
from tfdetr_keras.evaluation.coco_scorer import MOST_COUNTED, score
from tfdetr_keras.inference.coco_results import IouType

RESAMPLES = 1000
CONFIDENCE = 0.95


def compare_detections(
    ground_truth: Iterable[Mapping[str, Any]],
    first: Iterable[Mapping[str, Any]],
    second: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
    iou_type: IouType = "bbox",
    max_detections: int = MOST_COUNTED,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the detections of two models in the same images.

    Images are drawn anew, with replacement, as often as `resamples` says. The interval of a difference holds 95 of 100
    of the differences that such draws give: without 0 in it, chance alone hardly explains the difference.

    Args:
        ground_truth: as for `coco_metrics`.
        first: detections of one model, as for `coco_metrics`.
        second: those of the other.
        class_names: name of each label.
        iou_type: what is compared with the objects, boxes or masks.
        max_detections: of an image and a class that count.
        resamples: number of draws; 0 for differences without intervals.
        seed: of the draws.

    Returns:
        Plain values that JSON can hold: `images` and `resamples`, how many; `metrics`: name → `first`, `second`,
        `difference` (second less first), and with resamples `low`, `high` and `better`, the share of draws in which the
        second is better; `classes`: name → `first`, `second` and `difference` of AP, −1 and None where a class has no
        objects.

    Raises:
        ValueError: as `coco_metrics`; or a negative number of resamples.
    """
    if resamples < 0:
        raise ValueError(f"resamples must be at least 0, not {resamples}")
    max_detections, truth = check_max_detections(max_detections), list(ground_truth)
    of_first, of_second = (score(truth, found, len(class_names), iou_type, max_detections) for found in (first, second))
    told = hotcoco.compare(of_first.scorer, of_second.scorer, resamples, seed, CONFIDENCE)
    before, after = (metrics_of(one, class_names) for one in (of_first, of_second))
    metrics: dict[str, dict[str, Any]] = {}
    for name in told["metric_keys"]:
        known = before[name] >= 0 and after[name] >= 0
        metrics[name] = {"first": before[name], "second": after[name]}
        metrics[name]["difference"] = after[name] - before[name] if known else None
        if resamples and known:
            interval = told["ci"][name]
            metrics[name] |= {"low": interval["lower"], "high": interval["upper"], "better": interval["prob_positive"]}
    classes = {}
    for name in distinct_names(class_names):
        if name != UNUSED_NAME:
            values = [one["AP_per_class"][name] for one in (before, after)]
            difference = values[1] - values[0] if min(values) >= 0 else None
            classes[name] = {"first": values[0], "second": values[1], "difference": difference}
    return {"images": len(of_first.compared.image_ids), "resamples": resamples, "metrics": metrics, "classes": classes}
