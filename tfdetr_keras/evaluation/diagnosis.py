"""What a detector does well and what not, and why: the figures behind its average precision.

Source:
    Errors by kind: Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors",
    arXiv:2008.08115. Calibration: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfdetr_keras.data.class_names import UNUSED_NAME, distinct_names
from tfdetr_keras.evaluation.coco import mean_of_known, metrics_of
from tfdetr_keras.evaluation.coco_scorer import MOST_COUNTED, Scored, score
from tfdetr_keras.evaluation.precision_recall import MATCHED, Curve, curves
from tfdetr_keras.inference.coco_results import IouType
from tfdetr_keras.inference.postprocess import THRESHOLD

WORST = 16  # images and labels that are named
CURVE_POINTS = 101  # of precision by recall, as COCO has them
SIZES = {"small": "s", "medium": "m", "large": "l"}  # COCO's: areas below 32², below 96², and above, pixels²
# Images by the number of their objects, crowds left away: name → from, to.
CROWDING = {"1 object": (1, 1), "2 to 5": (2, 5), "6 to 10": (6, 10), "11 to 20": (11, 20), "more than 20": (21, None)}
# hotcoco's names of TIDE's errors → what they are.
ERRORS = {
    "Cls": "class",
    "Loc": "localisation",
    "Both": "class and localisation",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


def diagnosis_of(
    ground_truth: Iterable[Mapping[str, Any]],
    detections: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
    iou_type: IouType = "bbox",
    max_detections: int = MOST_COUNTED,
    groups: Mapping[str, Iterable[int]] | None = None,
) -> dict[str, Any]:
    """Compute the figures behind the average precision.

    An object counts as found from an IoU of 0.5 on, where nothing else is said. The threshold of a class is the score
    of its highest F1; what is told of single images, and of which class is taken for which, is of detections above it.

    Args:
        ground_truth: as for `coco_metrics`.
        detections: as for `coco_metrics`.
        class_names: name of each label.
        iou_type: what is compared, boxes or masks.
        max_detections: of an image and a class that count.
        groups: name → ids of images that are measured by themselves, too.

    Returns:
        Plain values that JSON can hold:
        `images`, `objects`, `detections`: how many; `compared`: "boxes" or "masks".
        `metrics`: those of `coco_metrics`.
        `classes`: name → `objects`, `AP`, `AP50`, `threshold`, and at that `precision`, `recall`, `F1`; `curve`, lists
        of `score`, `precision`, `recall` and `F1` at the scores of its detections, at most some 101 of them, and
        `precision_by_recall`, lists at COCO's 101 recalls for the IoU 0.5 and 0.75.
        `confusion`: `names`, those of the classes and "nothing", and `counts`, a list for each true class of what its
        objects were found as; in the last one what is found where nothing is.
        `errors`: kind → `count` among the detections above the thresholds, and `AP50` that mending all of this kind
        would add (TIDE).
        `calibration`: `expected_error`, `largest_error`, and `bins` of scores with `count`, mean `score` and
        `precision`.
        `sizes`, `crowding`, `groups`: name → `AP`, `AP50`, `AR`, of small, medium and large objects, of images by the
        number of their objects, and of the groups; with `objects` or `images`, how many.
        `worst_images`: ids, with `found`, `missed` and `false` counts, the most mistakes first.
        `suspicious_labels`: confident detections that say an object was labelled as another class or not at all.

    Raises:
        ValueError: as `coco_metrics`; a group with an image that is not in the set, or with none.
    """
    scored = score(ground_truth, detections, len(class_names), iou_type, max_detections)
    names = distinct_names(class_names)
    in_use = [label for label, name in enumerate(names) if name != UNUSED_NAME]
    of_class = curves(scored, len(names))
    thresholds = [curve.best_threshold() for curve in of_class]
    above = _above(scored, thresholds)
    confident = scored.above(above)
    metrics = metrics_of(scored, class_names)
    judged = confident.scorer.image_diagnostics(iou_thr=MATCHED)
    precision = scored.results["precision"][:, :, :, 0, -1]
    return {
        "images": len(scored.compared.image_ids),
        "objects": int((~scored.truth.is_crowd).sum()),
        "detections": len(scored.found.labels),
        "compared": "masks" if iou_type == "segm" else "boxes",
        "metrics": metrics,
        "classes": {
            names[label]: {
                "objects": of_class[label].objects,
                "AP": metrics["AP_per_class"][names[label]],
                "AP50": metrics["AP50_per_class"][names[label]],
                "threshold": thresholds[label],
                **_at_best(of_class[label]),
                "curve": _curve(of_class[label]),
                "precision_by_recall": {
                    "0.5": precision[0, :, label].tolist(),
                    "0.75": precision[5, :, label].tolist(),
                },
            }
            for label in in_use
        },
        "confusion": _confusion(confident, names, in_use),
        "errors": _errors(scored, confident),
        "calibration": _calibration(scored),
        "sizes": _sizes(scored, metrics),
        "crowding": _slices(scored, _by_crowding(scored)),
        "groups": _slices(scored, _places_of(groups or {}, scored.compared.image_ids)),
        "worst_images": _worst(confident, judged),
        "suspicious_labels": _suspicious(confident, judged, names),
    }


def thresholds_of(diagnosis: Mapping[str, Any]) -> dict[str, float]:
    """Return the threshold of each class by name; 0.5 of a class none of whose objects is found."""
    return {
        name: THRESHOLD if values["threshold"] is None else values["threshold"]
        for name, values in diagnosis["classes"].items()
    }


def _above(scored: Scored, thresholds: Sequence[float | None]) -> np.ndarray:
    limits = np.array([THRESHOLD if threshold is None else threshold for threshold in thresholds])
    return scored.found.scores > limits[scored.found.labels]


def _at_best(curve: Curve) -> dict[str, float | None]:
    place = curve.best()
    columns = {"precision": curve.precision, "recall": curve.recall, "F1": curve.f1}
    return {name: None if place is None else float(values[place]) for name, values in columns.items()}


def _curve(curve: Curve) -> dict[str, list[float]]:
    """Return a curve at no more places than a picture shows, the best among them."""
    places = np.unique(np.linspace(0, max(len(curve.scores) - 1, 0), CURVE_POINTS).round().astype(int))
    if (best := curve.best()) is not None:
        places = np.union1d(places, [best])
    places = places[: len(curve.scores)]
    columns = {"score": curve.scores, "precision": curve.precision, "recall": curve.recall, "F1": curve.f1}
    return {name: values[places].tolist() for name, values in columns.items()}


def _confusion(confident: Scored, names: Sequence[str], in_use: Sequence[int]) -> dict[str, Any]:
    counts = np.asarray(confident.scorer.confusion_matrix(iou_thr=MATCHED)["matrix"])
    kept = [*in_use, len(names)]
    return {"names": [*(names[label] for label in in_use), "nothing"], "counts": counts[np.ix_(kept, kept)].tolist()}


def _errors(scored: Scored, confident: Scored) -> dict[str, dict[str, Any]]:
    counts = confident.scorer.tide_errors(pos_thr=MATCHED)["counts"]
    gains = scored.scorer.tide_errors(pos_thr=MATCHED)["delta_ap"]
    return {meaning: {"count": counts[name], "AP50": gains[name]} for name, meaning in ERRORS.items()}


def _calibration(scored: Scored) -> dict[str, Any]:
    told = scored.scorer.calibration(iou_threshold=MATCHED)
    return {
        "expected_error": told["ece"],
        "largest_error": told["mce"],
        "bins": [
            {
                "from": one["bin_lower"],
                "to": one["bin_upper"],
                "count": one["count"],
                "score": one["avg_confidence"],
                "precision": one["avg_accuracy"],
            }
            for one in told["bins"]
        ],
    }


def _sizes(scored: Scored, metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    areas = scored.truth.areas[~scored.truth.is_crowd]
    ranges = dict(zip(scored.scorer.params.area_rng_lbl, scored.scorer.params.area_rng, strict=True))
    precision = scored.results["precision"]
    told = {}
    for place, (name, letter) in enumerate(SIZES.items(), 1):
        lower, upper = ranges[name]
        at_half = precision[0, :, :, place, -1]
        told[name] = {
            "objects": int(((areas >= lower) & (areas <= upper)).sum()),
            "AP": metrics[f"AP{letter}"],
            "AP50": mean_of_known(at_half),
            "AR": metrics[f"AR{letter}"],
        }
    return told


def _by_crowding(scored: Scored) -> dict[str, list[int]]:
    counts = Counter(scored.truth.places[~scored.truth.is_crowd].tolist())
    slices = {
        name: [place for place, count in counts.items() if count >= least and (most is None or count <= most)]
        for name, (least, most) in CROWDING.items()
    }
    return {name: sorted(places) for name, places in slices.items() if places}


def _places_of(groups: Mapping[str, Iterable[int]], image_ids: Sequence[int]) -> dict[str, list[int]]:
    place_of = {image_id: place for place, image_id in enumerate(image_ids)}
    found = {}
    for name, named in groups.items():
        members = [int(member) for member in named]
        if lacking := [member for member in members if member not in place_of]:
            raise ValueError(f"group {name!r}: there is no image {lacking[0]} in the set")
        if not members:
            raise ValueError(f"group {name!r} has no images")
        found[name] = [place_of[member] for member in dict.fromkeys(members)]
    return found


def _slices(scored: Scored, slices: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Any]]:
    if not slices:
        return {}
    told = scored.scorer.slice_by({name: list(places) for name, places in slices.items()})
    most = scored.compared.max_detections
    return {
        name: {
            "images": len(places),
            "AP": told[name]["AP"],
            "AP50": told[name]["AP50"],
            "AR": told[name][f"AR{most}"],
        }
        for name, places in slices.items()
    }


def _worst(confident: Scored, judged: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = judged["img_summary"]
    worst = sorted(told.items(), key=lambda item: (-(item[1]["fp"] + item[1]["fn"]), item[1]["f1"], item[0]))
    return [
        {"image_id": confident.compared.image_ids[place], "found": one["tp"], "missed": one["fn"], "false": one["fp"]}
        for place, one in worst[:WORST]
        if one["fp"] + one["fn"]
    ]


def _suspicious(confident: Scored, judged: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    told = judged["label_errors"]
    return [
        {
            "image_id": confident.compared.image_ids[one["image_id"]],
            "found": names[one["dt_category_id"]],
            "score": one["dt_score"],
            "labelled": None if one["gt_category_id"] is None else names[one["gt_category_id"]],
        }
        for one in sorted(told, key=lambda one: -one["dt_score"])[:WORST]
    ]
