"""How long does the AP of a large set take? `td.evaluation.coco_metrics` against pycocotools, on the same drawn boxes.

    python benchmarks/average_precision.py [--images 5000] [--detections 100] [--repetitions 3]

Objects and detections of COCO's counts: 80 classes, some 7 objects an image, of all sizes, a few of them crowds; nine
of ten detections lie near an object. Both begin with the arrays that a model's post-processing gives and end with all
figures, which have to be equal to the last digit; they take turns in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import statistics
import time
from functools import partial
from typing import Any

import numpy as np
from harness.report import print_bar, print_header, print_table, rounded
from harness.workers import take_turns

CLASSES, OBJECTS, SIDE, SEED = 80, 7, 640, 0
MOST = 0.3  # of pycocotools' time


def drawn(images: int, detections: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ground truth and detections, as `coco_metrics` takes them."""
    rng = np.random.default_rng(SEED)
    truths, found = [], []
    for image_id in range(images):
        count = int(rng.poisson(OBJECTS))
        boxes, labels = _boxes(rng, count), rng.integers(0, CLASSES, count)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        crowd = rng.random(count) < 0.01
        truths.append({"image_id": image_id, "boxes": boxes, "labels": labels, "iscrowd": crowd, "area": area})
        near = rng.integers(0, count, detections) if count else np.zeros(detections, int)
        is_near = (rng.random(detections) < 0.9) & (count > 0)
        anywhere, classes = _boxes(rng, detections), rng.integers(0, CLASSES, detections)
        if count:
            sides = np.tile(boxes[near, 2:] - boxes[near, :2], 2)
            moved = boxes[near] + 0.05 * sides * rng.standard_normal((detections, 4))
            anywhere = np.where(is_near[:, None], moved, anywhere)
            classes = np.where(is_near & (rng.random(detections) < 0.8), labels[near], classes)
        found.append({"image_id": image_id, "boxes": anywhere, "labels": classes, "scores": rng.random(detections)})
    return truths, found


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    corners = rng.uniform(0, SIDE - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def of_ours(truths: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[float]:
    """COCO's twelve figures."""
    from tfdetr_keras.evaluation import METRIC_NAMES, coco_metrics

    metrics = coco_metrics(truths, found, [str(label) for label in range(CLASSES)])
    return [metrics[name] for name in METRIC_NAMES]


def of_pycocotools(truths: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[float]:
    """The same by pycocotools, as its users write it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        rows = []
        for image in truths:
            columns = (
                image["boxes"].tolist(),
                image["labels"].tolist(),
                image["iscrowd"].tolist(),
                image["area"].tolist(),
            )
            for (left, top, right, bottom), label, crowd, area in zip(*columns, strict=True):
                row = {"id": len(rows) + 1, "image_id": image["image_id"], "category_id": label, "iscrowd": int(crowd)}
                rows.append(row | {"area": area, "bbox": [left, top, right - left, bottom - top]})
        truth.dataset = {
            "images": [{"id": image["image_id"]} for image in truths],
            "categories": [{"id": label} for label in range(CLASSES)],
            "annotations": rows,
        }
        truth.createIndex()
        results = truth.loadRes(
            [
                {
                    "image_id": image["image_id"],
                    "category_id": label,
                    "score": score,
                    "bbox": [left, top, right - left, bottom - top],
                }
                for image in found
                for (left, top, right, bottom), label, score in zip(
                    image["boxes"].tolist(), image["labels"].tolist(), image["scores"].tolist(), strict=True
                )
            ]
        )
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


def _seconds(compute: Any, *sets: Any) -> float:
    started = time.perf_counter()
    compute(*sets)
    return time.perf_counter() - started


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of an image")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()

    print_header("AP of a large set", ("tfdetr-keras", "hotcoco", "pycocotools", "numpy"))
    truths, found = drawn(arguments.images, arguments.detections)
    objects = sum(len(image["labels"]) for image in truths)
    print(f"{arguments.images} images, {objects} objects, {arguments.detections} detections an image.\n")
    sides = {"ours": of_ours, "pycocotools": of_pycocotools}
    figures = {name: compute(truths, found) for name, compute in sides.items()}
    apart = max(abs(a - b) for a, b in zip(figures["ours"], figures["pycocotools"], strict=True))
    runs = {name: partial(_seconds, compute, truths, found) for name, compute in sides.items()}
    taken = take_turns(runs, arguments.repetitions, seconds_per_figure=math.inf)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    ratio = medians["ours"] / medians["pycocotools"]
    rows = [
        (name, rounded(medians[name]), rounded(medians[name] / medians["pycocotools"]), f"{figures[name][0]:.6f}")
        for name in sides
    ]
    print_table(("", "median s", "/ pycocotools", "AP"), rows)
    print()
    print_bar("time of ours / pycocotools", ratio, at_most=MOST)
    print_bar("largest difference of the twelve figures", apart, at_most=0)


if __name__ == "__main__":
    main()
