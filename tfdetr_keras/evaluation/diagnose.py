"""A model's diagnosis on a dataset: figures, charts, the images it is worst at, and a page with all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdetr_keras.backend.atomic import made_folder, whole_file, write_text
from tfdetr_keras.data.record import records_with_ids, title_of
from tfdetr_keras.data.tiles import Tiles
from tfdetr_keras.evaluation.coco import MOST_COUNTED, Evaluator
from tfdetr_keras.evaluation.diagnosis import diagnosis_of, thresholds_of
from tfdetr_keras.evaluation.diagnosis_page import diagnosis_page
from tfdetr_keras.preprocessing import Preprocessing, SizeRule
from tfdetr_keras.visualize import diagnosis as charts
from tfdetr_keras.visualize.mistakes import draw_mistakes

PAGE, FIGURES, WORST = "report.html", "diagnosis.json", "worst.png"
CHARTS = {
    "errors.png": charts.draw_errors,
    "confusion.png": charts.draw_confusion,
    "precision_recall.png": charts.draw_precision_recall,
    "f1.png": charts.draw_f1,
    "calibration.png": charts.draw_calibration,
    "slices.png": charts.draw_slices,
}


def diagnose(
    model: keras.Model,
    records: tf.data.Dataset,
    class_names: Sequence[str],
    out: str | Path,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    pad_to: tuple[int, int] | None = None,
    size_rule: SizeRule | None = None,
    masks: bool = False,
    max_detections: int = MOST_COUNTED,
    preprocessing: Preprocessing | None = None,
    groups: Mapping[str, Iterable[int]] | None = None,
    tiles: Tiles | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Run a model over a dataset of records, and write what it does well and what not as a page with pictures.

    Args:
        model: see `evaluate_detections`, as for the arguments that are not named here.
        records: whose images the pictures show.
        class_names: name of each label.
        out: folder for `report.html`, `diagnosis.json` and the pictures.
        size: of images.
        batch_size: images a batch.
        pad_to: (height, width) of a fixed canvas.
        size_rule: by which images are resized.
        masks: whether masks are compared in place of boxes.
        max_detections: of an image and a class that count.
        preprocessing: how images are prepared.
        groups: name → ids of images that are measured by themselves, too; groups may overlap.
        tiles: where images are cut, to look at each tile as at an image.
        progress: called with the number of images done, after each batch.

    Returns:
        See `diagnosis_of`.

    Raises:
        ValueError: as `evaluate_detections` and `diagnosis_of`.
    """
    evaluator = Evaluator(
        records, class_names, size, batch_size, pad_to, size_rule, masks, max_detections, preprocessing, tiles
    )
    evaluator(model, progress)
    diagnosis = diagnosis_of_evaluated(evaluator, records, groups)
    write_diagnosis(diagnosis, evaluator, records, out)
    return diagnosis


def diagnosis_of_evaluated(
    evaluator: Evaluator, records: tf.data.Dataset, groups: Mapping[str, Iterable[int]] | None = None
) -> dict[str, Any]:
    """Return the diagnosis of what an evaluator measured last, with the titles of the images that it names.

    Args:
        evaluator: that has run.
        records: that it has run over.
        groups: see `diagnose`.
    """
    found = diagnosis_of(
        evaluator.ground_truth,
        evaluator.detections,
        evaluator.class_names,
        "segm" if evaluator.masks else "bbox",
        evaluator.max_detections,
        groups,
    )
    for entry in [*found["worst_images"], *found["suspicious_labels"]]:
        entry["title"] = title_of(records, entry["image_id"])
    return found


def write_diagnosis(
    diagnosis: Mapping[str, Any], evaluator: Evaluator, records: tf.data.Dataset, out: str | Path
) -> list[str]:
    """Write the page, the figures and the pictures of a diagnosis.

    Args:
        diagnosis: from `diagnosis_of_evaluated`.
        evaluator: it is of what this measured last.
        records: that the evaluator has run over.
        out: the folder.

    Returns:
        The names of the files.
    """
    out = Path(out)
    with made_folder(out):
        written = list(CHARTS)
        for name, draw in CHARTS.items():
            with whole_file(out / name) as partial:
                draw(diagnosis, partial)
        if _draw_worst(diagnosis, evaluator, records, out / WORST):
            written.append(WORST)
        else:
            (out / WORST).unlink(missing_ok=True)  # of another diagnosis
        write_text(out / FIGURES, json.dumps(diagnosis, indent=1) + "\n")
        pictures = {Path(name).stem: (out / name).read_bytes() for name in written}
        write_text(out / PAGE, diagnosis_page(diagnosis, pictures))
    return [PAGE, FIGURES, *written]


def _draw_worst(diagnosis: Mapping[str, Any], evaluator: Evaluator, records: tf.data.Dataset, path: Path) -> bool:
    """Draw the images with the most mistakes, if there are any; those that cannot be found again are left out."""
    order = [entry["image_id"] for entry in diagnosis["worst_images"]]
    if not order:
        return False
    chosen = records_with_ids(records, order).map(lambda record: {key: record[key] for key in ("image", "image_id")})
    images = {int(record["image_id"]): record["image"] for record in chosen.as_numpy_iterator()}
    truth = {image["image_id"]: image for image in evaluator.ground_truth}
    found = {image["image_id"]: image for image in evaluator.detections}
    order = [image_id for image_id in order if image_id in images]
    limits = np.array([thresholds_of(diagnosis).get(name, 1.0) for name in evaluator.class_names])
    if not order:
        return False
    with whole_file(path) as partial:
        draw_mistakes(
            [images[image_id] for image_id in order],
            [_above(found[image_id], limits) for image_id in order],
            [truth[image_id] for image_id in order],
            evaluator.class_names,
            partial,
            threshold=None,
            titles=[title_of(records, image_id) for image_id in order],
        )
    return True


def _above(image: Mapping[str, Any], limits: np.ndarray) -> dict[str, Any]:
    kept = image["scores"] > limits[image["labels"]]
    return {key: image[key][kept] for key in ("boxes", "labels", "scores")}
