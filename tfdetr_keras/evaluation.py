"""How good detections are: COCO's average precision, computed by pycocotools.

Ground truth and detections are plain dicts of numpy arrays, one per image, in pixels of the original image.
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tfdetr_keras.data.batching import Batch, encode, pad_batches
from tfdetr_keras.data.checks import readable_errors
from tfdetr_keras.data.recipes import evaluation
from tfdetr_keras.data.record import reader_of
from tfdetr_keras.data.sizes import Resize
from tfdetr_keras.inference import forward_function
from tfdetr_keras.postprocess import post_process
from tfdetr_keras.workers import gather, number_of_workers, worker_index

# The order of `COCOeval.stats` for boxes.
METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
TRUTH_KEYS = ("boxes", "labels", "iscrowd", "area")


def coco_metrics(
    ground_truth: Iterable[Mapping[str, Any]],
    detections: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Computes COCO's twelve box metrics, and AP and AP50 of each class.

    Args:
        ground_truth: per image `{"image_id": int, "boxes": (objects, 4) xyxy pixels, "labels": (objects,) int,
            "iscrowd": (objects,) bool, "area": (objects,) pixels²}`. A detection of a crowd is neither right nor wrong.
        detections: per image `{"image_id": int, "boxes": (detections, 4) xyxy pixels, "labels": (detections,) int,
            "scores": (detections,)}`; at most the 100 best of an image and class count. An image may be missing.
        class_names: name of each label; "N/A" for a label that is not in use.

    Returns:
        `{"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}` in [0, 1], or −1
        where there is no object to find, and `"AP_per_class"` and `"AP50_per_class"`, dicts from class name to value.

    Raises:
        ValueError: an image twice in the ground truth, a detection in an image that is not in it, or an unknown label.

    Source: `pycocotools.cocoeval.COCOeval` (Lin et al., "Microsoft COCO: Common Objects in Context").
    """
    ground_truth, detections = list(ground_truth), list(detections)
    image_ids = [int(image["image_id"]) for image in ground_truth]
    if len(set(image_ids)) != len(image_ids):
        twice = next(image_id for image_id in image_ids if image_ids.count(image_id) > 1)
        raise ValueError(f"ground truth: image {twice} appears more than once")
    unknown = {int(image["image_id"]) for image in detections}.difference(image_ids)
    if unknown:
        raise ValueError(f"detections: image {min(unknown)} is not in the ground truth")
    true_rows = [row for image in ground_truth for row in _rows(image, "ground truth", len(class_names))]
    found_rows = [row for image in detections for row in _rows(image, "detections", len(class_names))]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its tables
        scorer = COCOeval(
            _coco_index(true_rows, image_ids, class_names), _coco_index(found_rows, image_ids, class_names), "bbox"
        )
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    metrics: dict[str, Any] = dict(zip(METRIC_NAMES, scorer.stats.tolist(), strict=True))
    # (IoU thresholds, recalls, classes, areas, max detections): all areas, 100 detections
    precision = scorer.eval["precision"][:, :, :, 0, -1]
    at_half = precision[scorer.params.iouThrs == 0.5]
    for name, values in (("AP_per_class", precision), ("AP50_per_class", at_half)):
        metrics[name] = {
            class_name: float(values[:, :, label].mean())
            for label, class_name in enumerate(class_names)
            if class_name != "N/A"
        }
    return metrics


def class_table(metrics: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(class name, AP, AP50) of each class, from what `coco_metrics` returns."""
    return [(name, value, metrics["AP50_per_class"][name]) for name, value in metrics["AP_per_class"].items()]


def evaluate_detections(
    model: keras.Model,
    records: tf.data.Dataset,
    class_names: Sequence[str],
    size: tuple[int, int] = (800, 1333),
    batch_size: int = 1,
    pad_to: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Runs a model over a dataset of records and computes COCO's metrics.

    The padding of a batch changes a detector's answers a little; `batch_size` 1 has none.

    Args:
        model: see `Evaluator`.
        records: see `tfdetr_keras.data.record`.
        class_names: name of each label.
        size: (shortest_edge, longest_edge) that images are resized to, pixels.
        batch_size: images a batch.
        pad_to: (height, width) of a fixed canvas, pixels: on JAX, one compilation instead of one per image size.

    Returns:
        See `coco_metrics`.

    Raises:
        ValueError: the model's number of classes is not that of `class_names`; or as `coco_metrics`.
    """
    return Evaluator(records, class_names, size, batch_size, pad_to)(model)


class Evaluator:
    """Measures models on one dataset of records, again and again: `evaluator(model)` gives COCO's metrics.

    Where several processes train a model together (`tfdetr_keras.workers`), each measures its part of the records, and
    all get the metrics of the whole.

    Every query is a detection, without a threshold: its best class but "no object". Images stream: only boxes are kept,
    2.8 kB an image with 100 queries.

    A model gives `{"logits": (batch, queries, num_classes + 1), last = no object, "pred_boxes": (batch, queries, 4)
    cxcywh relative to the image without padding}` for `prepare`'s inputs.

    Args:
        records: as for `evaluate_detections`, like the other arguments.
        class_names: name of each label.
        size: (shortest_edge, longest_edge).
        batch_size: images a batch.
        pad_to: (height, width) of a fixed canvas.

    Attributes:
        ground_truth: of the last run, as `coco_metrics` takes it.
        detections: of the last run, as `coco_metrics` and `write_coco_results` take them.
    """

    def __init__(
        self,
        records: tf.data.Dataset,
        class_names: Sequence[str],
        size: tuple[int, int] = (800, 1333),
        batch_size: int = 1,
        pad_to: tuple[int, int] | None = None,
    ) -> None:
        resize = Resize(*size, strict=pad_to is not None)

        def encode_with_truth(record: dict[str, tf.Tensor]) -> Batch:
            inputs, targets = encode(evaluation(record, resize))
            return inputs, targets | {f"true_{key}": record[key] for key in TRUTH_KEYS}

        examples = _part_of_this_worker(records).map(
            encode_with_truth, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )
        self.class_names = list(class_names)
        self.ground_truth: list[dict[str, Any]] = []
        self.detections: list[dict[str, Any]] = []
        self._batches = pad_batches(examples, batch_size, pad_to)

    def __call__(self, model: keras.Model, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
        """Runs the model over all records; see `coco_metrics` for what is returned and raised.

        Args:
            model: see the class.
            progress: called with the number of images done, after each batch.
        """
        forward = forward_function(model, self._batches.element_spec[0])
        self.ground_truth, self.detections = [], []
        with readable_errors():
            for inputs, targets in self._batches:
                self._take(forward(inputs), {key: value.numpy() for key, value in targets.items()})
                if progress is not None:
                    progress(len(self.detections))
        self.ground_truth = [image for part in gather(self.ground_truth) for image in part]
        self.detections = [image for part in gather(self.detections) for image in part]
        return coco_metrics(self.ground_truth, self.detections, self.class_names)

    def _take(self, outputs: Mapping[str, Any], targets: Mapping[str, np.ndarray]) -> None:
        if outputs["logits"].shape[-1] != len(self.class_names) + 1:
            raise ValueError(
                f"the model gives {outputs['logits'].shape[-1]} logits, but {len(self.class_names)} class names "
                f"need {len(self.class_names) + 1} (the last one for no object)"
            )
        results = post_process(outputs, targets["orig_size"], threshold=0.0)
        for row, (image_id, result) in enumerate(zip(targets["image_id"], results, strict=True)):
            real = targets["true_labels"][row] >= 0
            truth = {key: targets[f"true_{key}"][row][real] for key in TRUTH_KEYS}
            self.ground_truth.append({"image_id": int(image_id), **truth})
            self.detections.append({"image_id": int(image_id), **result})


def _part_of_this_worker(records: tf.data.Dataset) -> tf.data.Dataset:
    workers, reader = number_of_workers(), reader_of(records)
    if workers == 1:
        return records
    if reader is None:
        return records.shard(workers, worker_index())
    return reader.records(reader.entries.shard(workers, worker_index()))


def write_coco_results(
    detections: Iterable[Mapping[str, Any]], path: str | Path, category_ids: Sequence[int] | None = None
) -> None:
    """Writes detections as COCO's results JSON, which `pycocotools` and evaluation servers read.

    Args:
        detections: as for `coco_metrics`.
        path: the file to write.
        category_ids: the id of each label, e.g. from `td.data.coco_category_ids`; the labels themselves by default.
    """
    rows = []
    for image in detections:
        labels = np.asarray(image["labels"])
        most = int(labels.max(initial=-1)) + 1
        for row in _rows(image, "detections", most if category_ids is None else len(category_ids)):
            category = row["category_id"] if category_ids is None else int(category_ids[row["category_id"]])
            rows.append({key: row[key] for key in ("image_id", "bbox", "score")} | {"category_id": category})
    Path(path).write_text(json.dumps(rows), encoding="utf-8")


def _rows(image: Mapping[str, Any], source: str, num_classes: int) -> list[dict[str, Any]]:
    """One image's objects or detections as COCO's annotation dicts."""
    boxes, labels = np.asarray(image["boxes"], np.float64).reshape(-1, 4), np.asarray(image["labels"])
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"{source}: image {image['image_id']}, row {row} has label {labels[row]}, but there are "
            f"{num_classes} class names"
        )
    sides = boxes[:, 2:] - boxes[:, :2]
    columns = {
        "bbox": np.concatenate([boxes[:, :2], sides], axis=1).tolist(),
        "category_id": labels.tolist(),
        "area": np.asarray(image.get("area", sides.prod(axis=1)), np.float64).tolist(),
        "iscrowd": np.asarray(image.get("iscrowd", np.zeros(len(labels), bool))).astype(int).tolist(),
    }
    if "scores" in image:
        columns["score"] = np.asarray(image["scores"], np.float64).tolist()
    rows = zip(*columns.values(), strict=True)
    return [{"image_id": int(image["image_id"]), **dict(zip(columns, row, strict=True))} for row in rows]


def _coco_index(rows: list[dict[str, Any]], image_ids: list[int], class_names: Sequence[str]) -> COCO:
    """COCO's in-memory dataset; `loadRes` would refuse an empty list of detections."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image_id} for image_id in image_ids],
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names)],
        "annotations": [{"id": row_id, **row} for row_id, row in enumerate(rows, start=1)],  # id 0 would mean unmatched
    }
    coco.createIndex()
    return coco
