"""COCO's evaluation of plain arrays, run by hotcoco: its figures are pycocotools' to the last digit, in far less time.

Source:
    Lin et al. 2014, "Microsoft COCO: Common Objects in Context", arXiv:1405.0312.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import hotcoco
import numpy as np

from tfdetr_keras.inference.coco_results import IouType, check_iou_type, coco_columns

MOST_COUNTED = 100  # detections of an image and a class that COCO's evaluation looks at
RECALL_COUNTS = (1, 10, MOST_COUNTED)  # detections of an image and a class that AR1, AR10 and AR100 count


class Rows(NamedTuple):
    """The objects, or the detections, of all images, one after the other.

    Attributes:
        places: of each row's image among the images of the set, `(rows,)` int.
        labels: `(rows,)` int.
        boxes: `(rows, 4)` x, y, width, height in pixels; all 0 where masks are compared.
        areas: `(rows,)` pixels².
        is_crowd: `(rows,)` bool.
        scores: `(rows,)`; all 0 for objects.
        masks: run lengths of each row, where masks are compared.
    """

    places: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray
    scores: np.ndarray
    masks: list[dict[str, Any] | list[list[float]]] | None


class Compared(NamedTuple):
    """What is compared, and how.

    Attributes:
        image_ids: of the set.
        sizes: height and width of each image where masks are compared, pixels; elsewhere 0.
        num_classes: labels are below it.
        iou_type: what is compared.
        max_detections: of an image and a class that count.
    """

    image_ids: list[int]
    sizes: list[Sequence[int]]
    num_classes: int
    iou_type: IouType
    max_detections: int


class Scored(NamedTuple):
    """An evaluated set.

    Attributes:
        scorer: hotcoco's evaluation, run. Its ids of images are places among those of `compared`, and those of classes
            labels; its ids of objects and of detections count the rows of `truth` and `found` from 1.
        results: of the evaluation, pycocotools' `precision` `(IoU thresholds, recalls, classes, areas, counts)`,
            `recall` `(IoU thresholds, classes, areas, counts)` and so on.
        compared: what was compared.
        truth: the objects.
        found: the detections.
    """

    scorer: hotcoco.COCOeval
    results: dict[str, Any]
    compared: Compared
    truth: Rows
    found: Rows

    def above(self, keep: np.ndarray) -> Scored:
        """Compare some of the detections anew, such as those above a threshold.

        Args:
            keep: `(detections,)` bool.
        """
        masks = self.found.masks
        kept = None if masks is None else [mask for mask, wanted in zip(masks, keep, strict=True) if wanted]
        columns = {name: column[keep] for name, column in self.found._asdict().items() if name != "masks"}
        return _scored(self.compared, self.truth, Rows(**columns, masks=kept))


def score(
    ground_truth: Iterable[Mapping[str, Any]],
    detections: Iterable[Mapping[str, Any]],
    num_classes: int,
    iou_type: IouType = "bbox",
    max_detections: int = MOST_COUNTED,
) -> Scored:
    """Compare detections with objects, at all of COCO's IoU thresholds.

    Args:
        ground_truth: as for `coco_metrics`.
        detections: as for `coco_metrics`.
        num_classes: labels are below it.
        iou_type: what is compared.
        max_detections: of an image and a class that count.

    Raises:
        ValueError: as `coco_metrics`.
    """
    check_iou_type(iou_type)
    sizes: dict[int, list[int]] = {}  # of images with masks
    true_ids, true_columns = _columns(ground_truth, "ground truth", num_classes, iou_type, sizes)
    found_ids, found_columns = _columns(detections, "detections", num_classes, iou_type, sizes)
    place_of = {image_id: place for place, image_id in enumerate(dict.fromkeys(true_ids))}
    if len(place_of) != len(true_ids):
        twice = next(image_id for image_id in place_of if true_ids.count(image_id) > 1)
        raise ValueError(f"ground truth: image {twice} appears more than once")
    unknown = set(found_ids).difference(place_of)
    if unknown:
        raise ValueError(f"detections: image {min(unknown)} is not in the ground truth")
    compared = Compared(
        list(place_of),
        [sizes.get(image_id, (0, 0)) for image_id in place_of],
        num_classes,
        iou_type,
        max_detections,
    )
    truth = _rows(true_columns, [place_of[image_id] for image_id in true_ids], iou_type)
    return _scored(compared, truth, _rows(found_columns, [place_of[image_id] for image_id in found_ids], iou_type))


def _scored(compared: Compared, truth: Rows, found: Rows) -> Scored:
    """Run hotcoco."""
    objects = hotcoco.COCO.from_arrays(
        [{"id": place, "height": height, "width": width} for place, (height, width) in enumerate(compared.sizes)],
        # Their names are keys in what hotcoco tells of each class, and those of a set may repeat.
        [{"id": label, "name": str(label)} for label in range(compared.num_classes)],
        truth.places,
        truth.labels,
        truth.boxes,
        ids=np.arange(1, 1 + len(truth.labels)),  # 0 would mean unmatched
        area=truth.areas,
        iscrowd=truth.is_crowd,
        segmentation=truth.masks,
    )
    table = np.concatenate([found.places[:, None], found.boxes, found.scores[:, None], found.labels[:, None]], axis=1)
    detections = objects.load_res(table, segmentation=found.masks)
    if len(found.labels):
        detections.update_anns(ids=np.arange(1, 1 + len(found.labels)), area=found.areas)
    scorer = hotcoco.COCOeval(objects, detections, compared.iou_type)
    scorer.params.max_dets = sorted({*RECALL_COUNTS, compared.max_detections})
    scorer.evaluate()
    scorer.accumulate()
    return Scored(scorer, scorer.eval or {}, compared, truth, found)


def _columns(
    images: Iterable[Mapping[str, Any]], source: str, num_classes: int, iou_type: str, sizes: dict[int, list[int]]
) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the ids of the images, and the columns of each; record the images' sizes where masks show them."""
    image_ids, columns = [], []
    for image in images:
        image_ids.append(int(image["image_id"]))
        columns.append(coco_columns(image, source, num_classes, iou_type))
        for number, mask in enumerate(columns[-1].get("segmentation", ())):
            size = list(mask["size"])
            expected = sizes.setdefault(image_ids[-1], size)
            if size != expected:
                raise ValueError(
                    f"{source}: image {image_ids[-1]}, mask {number} has the size {size}, but another one of the image "
                    f"{expected} (height, width)"
                )
    return image_ids, columns


def _rows(images: Sequence[Mapping[str, Any]], places: Sequence[int], iou_type: IouType) -> Rows:
    """Return the rows of all images."""
    counts = [len(image["category_id"]) for image in images]

    def joined(name: str, width: tuple[int, ...] = (), dtype: Any = np.float64) -> np.ndarray:
        columns = [
            image.get(name, np.zeros((count, *width), dtype)) for image, count in zip(images, counts, strict=True)
        ]
        return np.concatenate([np.zeros((0, *width), dtype), *columns]).astype(dtype)

    return Rows(
        np.repeat(np.asarray(places, np.int64), counts),
        joined("category_id", dtype=np.int64),
        joined("bbox", (4,)),
        joined("area"),
        joined("iscrowd", dtype=np.bool_),
        joined("score"),
        [mask for image in images for mask in image["segmentation"]] if iou_type == "segm" else None,
    )
