"""Quality of detections: COCO's average precision, of boxes or of masks, computed by hotcoco.

Ground truth and detections are plain dicts of numpy arrays, one per image, in pixels of the original image. Masks may
be run lengths, as `tfdetr_keras.data.segmentations.run_lengths` makes them: a set's pixels would not fit into memory.
Panoptic segmentations are measured by `tfdetr_keras.evaluation.panoptic`.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdetr_keras.backend.processes import gather
from tfdetr_keras.data.checks import readable_errors
from tfdetr_keras.data.class_names import UNUSED_NAME, distinct_names
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import Record
from tfdetr_keras.data.segmentations import run_lengths
from tfdetr_keras.data.tiles import Tiles
from tfdetr_keras.evaluation.batches import check_measurable, evaluation_batches, part_of_this_worker
from tfdetr_keras.evaluation.coco_scorer import MOST_COUNTED, Scored, score
from tfdetr_keras.inference.coco_results import IouType, coco_results
from tfdetr_keras.inference.detection import check_classes, classification_of, most_answers
from tfdetr_keras.inference.forward_pass import forward_function
from tfdetr_keras.inference.postprocess import post_process
from tfdetr_keras.inference.segments import objects_with_masks
from tfdetr_keras.inference.tiled import detect_tiled
from tfdetr_keras.matching.classification import Classification
from tfdetr_keras.preprocessing import Preprocessing, SizeRule, preprocessing_for

# The order of `COCOeval.stats` for boxes and masks.
METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
TRUTH_KEYS = ("boxes", "labels", "iscrowd", "area")
MASK = "mask_"  # begins the names of the masks' metrics, where there are those of boxes, too

logger = logging.getLogger(__name__)


def metric_names(max_detections: int = MOST_COUNTED) -> tuple[str, ...]:
    """Return the names of COCO's metrics, with the recall at `max_detections`, such as AR300, if that is not 100."""
    if max_detections == MOST_COUNTED:
        return METRIC_NAMES
    place = METRIC_NAMES.index(f"AR{MOST_COUNTED}") + 1
    return (*METRIC_NAMES[:place], f"AR{max_detections}", *METRIC_NAMES[place:])


def check_max_detections(max_detections: Any) -> int:
    """Return the number of detections of an image and a class that are counted.

    Raises:
        ValueError: not a whole number from 100 on.
    """
    if not isinstance(max_detections, (int, np.integer)) or isinstance(max_detections, bool):
        raise ValueError(f"max_detections must be a whole number, not {max_detections!r}")
    if max_detections < MOST_COUNTED:
        raise ValueError(f"max_detections must be at least COCO's {MOST_COUNTED}, not {max_detections}")
    return int(max_detections)


def coco_metrics(
    ground_truth: Iterable[Mapping[str, Any]],
    detections: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
    iou_type: IouType = "bbox",
    max_detections: int = MOST_COUNTED,
) -> dict[str, Any]:
    """Compute COCO's twelve metrics of boxes or of masks, and AP and AP50 of each class.

    Images are taken one by one, and of masks only run lengths are kept.

    Args:
        ground_truth: per image `{"image_id": int, "boxes": (objects, 4) xyxy pixels, "labels": (objects,) int,
            "iscrowd": (objects,) bool, "area": (objects,) pixels²}`. A detection of a crowd is neither right nor wrong.
        detections: per image `{"image_id": int, "boxes": (detections, 4) xyxy pixels, "labels": (detections,) int,
            "scores": (detections,)}`; at most the best `max_detections` of an image and class count. An
            image may be missing.
        class_names: name of each label; "N/A" for a label that is not in use.
        iou_type: "bbox" for AP of boxes; "segm" for AP of masks, for which both have, instead of boxes, `"masks":
            (n, height, width)` bool or n of COCO's run lengths.
        max_detections: number of detections of an image and a class that count, the highest-scoring first. With more
            than COCO's 100, AP and the recalls by size use that number, and the recall is given both with 100 and with
            that number. Images with more objects of a class than are counted are logged: their recall cannot be 1.

    Returns:
        `{"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}` in [0, 1], or −1
        where there is no object to find, with `"AR300"` if `max_detections` is 300; and `"AP_per_class"` and
        `"AP50_per_class"`, dicts from class name to value. If several classes share a name, all but the first
        are called "name (2)", "name (3)".

    Raises:
        ValueError: an image twice in the ground truth, a detection in an image that is not in it, or an unknown label;
            another `iou_type`; masks that are missing, faulty, or of another size than the ground truth's.

    Source: `hotcoco.COCOeval`, whose figures are `pycocotools.cocoeval.COCOeval`'s (Lin et al., "Microsoft COCO:
        Common Objects in Context").
    """
    metrics, crowded = _measured(ground_truth, detections, class_names, iou_type, max_detections)
    if crowded:
        logger.warning(crowded)
    return metrics


def _measured(
    ground_truth: Iterable[Mapping[str, Any]],
    detections: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
    iou_type: IouType,
    max_detections: int,
) -> tuple[dict[str, Any], str]:
    """Return the metrics of `coco_metrics`, and a message on images with more objects than are counted."""
    max_detections = check_max_detections(max_detections)
    scored = score(ground_truth, detections, len(class_names), iou_type, max_detections)
    return metrics_of(scored, class_names), _told_crowded(scored, class_names, max_detections)


def mean_of_known(values: np.ndarray) -> float:
    """Return the mean of what COCO's evaluation knows: −1 stands for no objects, also in the result."""
    return float(values[values > -1].mean()) if (values > -1).any() else -1.0


def metrics_of(scored: Scored, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of `coco_metrics` for a set that is evaluated already."""
    metrics = _summary(scored)
    # (IoU thresholds, recalls, classes, areas, max detections): all areas, all detections that count
    precision = scored.results["precision"][:, :, :, 0, -1]
    at_half = precision[np.isclose(scored.scorer.params.iou_thrs, 0.5)]
    for name, values in (("AP_per_class", precision), ("AP50_per_class", at_half)):
        metrics[name] = {
            class_name: float(values[:, :, label].mean())
            for label, class_name in enumerate(distinct_names(class_names))
            if class_name != UNUSED_NAME
        }
    return metrics


def _summary(scored: Scored) -> dict[str, Any]:
    """Return the figures of `COCOeval.summarize`, which only knows AP with 100 detections and three recalls."""
    # (IoU thresholds, recalls, classes, areas, counts) and (IoU thresholds, classes, areas, counts)
    precision, recall = scored.results["precision"], scored.results["recall"]
    thresholds, counts = np.asarray(scored.scorer.params.iou_thrs), scored.scorer.params.max_dets
    metrics = {"AP": mean_of_known(precision[:, :, :, 0, -1])}
    metrics |= {
        f"AP{round(100 * at)}": mean_of_known(precision[np.isclose(thresholds, at)][:, :, :, 0, -1])
        for at in (0.5, 0.75)
    }
    metrics |= {f"AP{size}": mean_of_known(precision[:, :, :, area, -1]) for area, size in enumerate("sml", 1)}
    metrics |= {f"AR{count}": mean_of_known(recall[:, :, 0, place]) for place, count in enumerate(counts)}
    return metrics | {f"AR{size}": mean_of_known(recall[:, :, area, -1]) for area, size in enumerate("sml", 1)}


def _told_crowded(scored: Scored, class_names: Sequence[str], most: int) -> str:
    """Return a message on images with more objects of a class than detections of it count; "" if there are none."""
    singles = ~scored.truth.is_crowd
    counts = Counter(zip(scored.truth.places[singles].tolist(), scored.truth.labels[singles].tolist(), strict=True))
    crowded = {place for (place, _), count in counts.items() if count > most}
    if not crowded:
        return ""
    (place, label), count = counts.most_common(1)[0]
    image_id = scored.compared.image_ids[place]
    return (
        f"{len(crowded)} images have more than {most} objects of one class, e.g. image {image_id} with {count} of "
        f"{class_names[label]}, but only {most} detections of an image and a class count: raise "
        "max_detections (--max-detections) to count more"
    )


def class_table(metrics: Mapping[str, Any], masks: bool = False) -> list[tuple[str, float, float]]:
    """Return (class name, AP, AP50) of each class from the result of `coco_metrics`, or of masks, of an `Evaluator`."""
    values, at_half = (metrics[f"{MASK if masks else ''}{name}_per_class"] for name in ("AP", "AP50"))
    return [(name, value, at_half[name]) for name, value in values.items()]


def evaluate_detections(
    model: keras.Model,
    records: tf.data.Dataset,
    class_names: Sequence[str],
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    pad_to: tuple[int, int] | None = None,
    size_rule: SizeRule | None = None,
    masks: bool = False,
    max_detections: int = MOST_COUNTED,
    preprocessing: Preprocessing | None = None,
    tiles: Tiles | None = None,
) -> dict[str, Any]:
    """Run a model over a dataset of records and compute COCO's metrics.

    The padding of a batch changes a detector's answers a little; `batch_size` 1 has no padding.

    Args:
        model: see `Evaluator`.
        records: see `tfdetr_keras.data.record`.
        class_names: name of each label.
        size: of images, instead of the preprocessing's, see `td.Preprocessing`.
        batch_size: images a batch.
        pad_to: (height, width) of a fixed canvas, pixels, instead of the preprocessing's: on JAX, one
            compilation instead of one per image size.
        size_rule: by which images are resized, instead of the preprocessing's.
        masks: whether AP of masks is computed, too, of records with masks and a model with a mask head.
        max_detections: of an image and a class that count, see `coco_metrics`.
        preprocessing: how images are prepared; by default the model's own.
        tiles: where images are cut, to look at each tile as at an image, see `detect_tiled`; boxes alone are measured.

    Returns:
        See `coco_metrics`; with `masks` also the same of the masks, under names prefixed with "mask_": `mask_AP`,
        `mask_AP50`, … `mask_AP_per_class`.

    Raises:
        ValueError: the model's number of classes is not that of `class_names`; there are no masks; or as
            `coco_metrics`.
    """
    evaluator = Evaluator(
        records, class_names, size, batch_size, pad_to, size_rule, masks, max_detections, preprocessing, tiles
    )
    return evaluator(model)


class Evaluator:
    """Repeated measurement of models on one dataset of records: `evaluator(model)` returns COCO's metrics.

    Where several processes train a model together (`tfdetr_keras.backend.processes`), each measures its part of the
    records, and all get the metrics of the whole.

    There is no threshold. Every query is a detection, with its best class other than "no object"; with a classification
    by sigmoids, the most likely pairs of query and class are: 100, or `max_detections` if that is more; of an RT-DETR
    as many as it has queries, as its authors measure. Images stream: only boxes are kept, 2.8 kB an image with 100
    queries. Masks are made one after the other, in the size of the original image, and kept as run lengths.

    A model returns `{"logits": (batch, queries, num_classes + 1), last = no object, "pred_boxes": (batch, queries, 4)
    cxcywh relative to the image without padding}` for `prepare`'s inputs; where its `config.classification` is "focal",
    logits without the last one; for masks `pred_masks`, too.

    Args:
        records: as for `evaluate_detections`, like the other arguments.
        class_names: name of each label.
        size: instead of the preprocessing's.
        batch_size: images a batch.
        pad_to: (height, width) of a fixed canvas.
        size_rule: by which rule images are resized.
        masks: whether AP of masks is computed, too.
        max_detections: of an image and a class that count.
        preprocessing: how images are prepared; by default each model's own.
        tiles: where images are cut; None for whole images.

    Attributes:
        ground_truth: of the last run, as `coco_metrics` takes it, for boxes and, where they were requested, masks.
        detections: of the last run, as `coco_metrics` and `write_coco_results` take them.

    Raises:
        ValueError: masks are requested of records without any; an invalid preprocessing; records without a single
            usable object, or two with the same image id.
    """

    def __init__(
        self,
        records: tf.data.Dataset,
        class_names: Sequence[str],
        size: tuple[int, int] | None = None,
        batch_size: int = 1,
        pad_to: tuple[int, int] | None = None,
        size_rule: SizeRule | None = None,
        masks: bool = False,
        max_detections: int = MOST_COUNTED,
        preprocessing: Preprocessing | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        self.max_detections, self._told = check_max_detections(max_detections), False
        if masks and tiles is not None:
            raise ValueError("masks are measured on whole images, and boxes in tiles: leave out masks or tiles")
        self.tiles = tiles
        if masks and "masks" not in records.element_spec:
            raise ValueError("the records have no masks to compare with: read them with load_coco(…, masks=True)")
        self.class_names, self.masks = list(class_names), masks
        self.ground_truth: list[dict[str, Any]] = []
        self.detections: list[dict[str, Any]] = []
        check_measurable(records)
        self._records, self._batch_size = records, batch_size
        self._input = (preprocessing, size, pad_to, size_rule)
        preprocessing_for(None, *self._input)  # what cannot be is refused here, not after an epoch of training
        self._batches: dict[Preprocessing, tf.data.Dataset] = {}

    def __call__(self, model: keras.Model, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
        """Run the model over all records; see `evaluate_detections` for results and errors.

        Args:
            model: see the class.
            progress: called with the number of images done, after each batch.
        """
        self.ground_truth, self.detections = [], []
        preprocessing = preprocessing_for(model, *self._input)
        with readable_errors():
            if self.tiles is None:
                self._look(model, preprocessing, progress)
            else:
                self._look_at_tiles(model, preprocessing, self.tiles, progress)
        self.ground_truth = [image for part in gather(self.ground_truth) for image in part]
        self.detections = [image for part in gather(self.detections) for image in part]
        found = (self.ground_truth, self.detections, self.class_names)
        metrics, crowded = _measured(*found, "bbox", self.max_detections)
        if crowded and not self._told:
            logger.warning(crowded)
            self._told = True  # once, not after every epoch
        if self.masks:
            of_masks, _ = _measured(*found, "segm", self.max_detections)
            metrics |= {f"{MASK}{name}": value for name, value in of_masks.items()}
        return metrics

    def _look(self, model: keras.Model, preprocessing: Preprocessing, progress: Callable[[int], None] | None) -> None:
        """Keep what a model finds in whole images."""
        batches = self._batches_for(preprocessing)
        forward = forward_function(model, batches.element_spec[0], 0.0 if self.masks else None)
        classification = classification_of(model)
        top_k = most_answers(model, at_least=self.max_detections)
        for inputs, targets in batches:
            outputs = forward(inputs)
            check_classes(model, outputs, len(self.class_names))
            arrays = {key: value.numpy() for key, value in targets.items()}
            self._take(outputs, inputs["pixel_mask"].numpy(), arrays, classification, top_k)
            if progress is not None:
                progress(len(self.detections))

    def _look_at_tiles(
        self, model: keras.Model, preprocessing: Preprocessing, tiles: Tiles, progress: Callable[[int], None] | None
    ) -> None:
        """Keep what a model finds in tiles of images."""
        if len(model.id2label) != len(self.class_names):
            raise ValueError(
                f"the model has {len(model.id2label)} classes, but there are {len(self.class_names)} names"
            )
        records = part_of_this_worker(self._records)
        truths = records.map(lambda record: {key: record[key] for key in ("image_id", *TRUTH_KEYS)})
        found = detect_tiled(
            model, records, tiles, None, self._batch_size, None, 0.0, masks=False, preprocessing=preprocessing
        )
        for truth, image in zip(truths.as_numpy_iterator(), found, strict=True):
            self.ground_truth.append(truth | {"image_id": int(truth["image_id"])})
            self.detections.append(image)
            if progress is not None:
                progress(len(self.detections))

    def _batches_for(self, preprocessing: Preprocessing) -> tf.data.Dataset:
        """Return the records as batches for models with a preprocessing."""
        if preprocessing not in self._batches:
            made = evaluation_batches(self._records, self._truth, preprocessing, self._batch_size)
            self._batches[preprocessing] = made
        return self._batches[preprocessing]

    def _truth(self, record: Record) -> dict[str, tf.Tensor]:
        """Return what a record says of its objects; masks as COCO's texts of run lengths, one an object."""
        truth = {key: record[key] for key in TRUTH_KEYS}
        if self.masks:
            texts = numpy_call(
                lambda masks: np.array([one["counts"] for one in run_lengths(masks)], np.bytes_),
                [record["masks"]],
                tf.string,
            )
            truth["masks"] = tf.ensure_shape(texts, (None,))
        return truth

    def _take(
        self,
        outputs: Mapping[str, Any],
        pixel_mask: np.ndarray,
        targets: Mapping[str, np.ndarray],
        classification: Classification,
        top_k: int | None,
    ) -> None:
        """Keep the ground truth and the detections of the images of a batch."""
        sizes = targets["orig_size"]
        if self.masks:
            objects = objects_with_masks(
                outputs, sizes, threshold=0.0, pixel_mask=pixel_mask, classification=classification, top_k=top_k
            )
            results = [_with_run_lengths(found, mask_of, self.max_detections) for found, mask_of in objects]
        else:
            results = post_process(outputs, sizes, 0.0, classification, top_k=top_k)
        for row, (image_id, result) in enumerate(zip(targets["image_id"], results, strict=True)):
            real = targets["true_labels"][row] >= 0
            truth = {key: targets[f"true_{key}"][row][real] for key in TRUTH_KEYS}
            if self.masks:
                size = sizes[row].tolist()
                truth["masks"] = [{"size": size, "counts": text} for text in targets["true_masks"][row][real]]
            self.ground_truth.append({"image_id": int(image_id), **truth})
            self.detections.append({"image_id": int(image_id), **result})


def _with_run_lengths(
    found: Mapping[str, np.ndarray], mask_of: Callable[[int], np.ndarray], most: int
) -> dict[str, Any]:
    """Return the detections of an image that COCO's evaluation counts, with their masks as run lengths."""
    order = np.argsort(-found["scores"], kind="stable")  # as pycocotools sorts
    best = [order[found["labels"][order] == label][:most] for label in np.unique(found["labels"])]
    rows = np.sort(np.concatenate([order[:0], *best]))
    masks = [run_lengths(mask_of(row)[None])[0] for row in rows]
    return {key: value[rows] for key, value in found.items()} | {"masks": masks}


def write_coco_results(
    detections: Iterable[Mapping[str, Any]],
    path: str | Path,
    category_ids: Sequence[int] | Mapping[int, int] | None = None,
    iou_type: IouType = "bbox",
) -> None:
    """Write detections as COCO's results JSON, which `pycocotools` and evaluation servers read.

    Args:
        detections: as for `coco_metrics`, e.g. from `td.detect`.
        path: the file to write.
        category_ids: see `coco_results`.
        iou_type: see `coco_results`.

    Raises:
        ValueError: see `coco_results`.
    """
    Path(path).write_text(json.dumps(list(coco_results(detections, category_ids, iou_type))), encoding="utf-8")
