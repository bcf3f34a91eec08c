"""Objects and detections in the form that COCO's tools take: one dictionary each, of plain values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from pycocotools import mask as coco_mask

from tfdetr_keras.data.segmentations import run_lengths

IouType = Literal["bbox", "segm"]  # pycocotools' names for what is compared: boxes, or masks


def coco_results(
    detections: Iterable[Mapping[str, Any]],
    category_ids: Sequence[int] | Mapping[int, int] | None = None,
    iou_type: IouType = "bbox",
) -> Iterator[dict[str, Any]]:
    """Yield detections as the entries of COCO's results JSON.

    Args:
        detections: as for `coco_metrics`.
        category_ids: the id of each label, e.g. from `td.data.coco_category_ids`; the labels themselves by default.
        iou_type: "bbox" for boxes, "segm" for masks. Entries have only one of them: with both, pycocotools would use
            the areas of the boxes for the masks.

    Yields:
        `{"image_id": int, "category_id": int, "score": float}` with `"bbox": [x, y, width, height]` or
        `"segmentation"`, run lengths; plain values that JSON can hold.

    Raises:
        ValueError: another `iou_type`, a label without a category id, or missing masks.
    """
    check_iou_type(iou_type)
    kept = ("image_id", "score", "bbox" if iou_type == "bbox" else "segmentation")
    for image in detections:
        labels = np.asarray(image["labels"])
        if isinstance(category_ids, Mapping):
            lacking = sorted(set(labels.tolist()) - set(category_ids))
            if lacking:
                raise ValueError(f"category_ids has no id for the label {lacking[0]}")
        most = int(labels.max(initial=-1)) + 1
        num_classes = len(category_ids) if isinstance(category_ids, Sequence) else most
        for row in coco_rows(image, "detections", num_classes, iou_type):
            category = row["category_id"] if category_ids is None else int(category_ids[row["category_id"]])
            entry = {key: row[key] for key in kept} | {"category_id": category}
            if iou_type == "segm":
                entry["segmentation"] = row["segmentation"] | {"counts": row["segmentation"]["counts"].decode()}
            yield entry


def check_iou_type(iou_type: str) -> None:
    """Raise a `ValueError` if pycocotools does not have this kind of comparison."""
    if iou_type not in get_args(IouType):
        raise ValueError(f"iou_type must be one of {get_args(IouType)}, not {iou_type!r}")


def coco_rows(image: Mapping[str, Any], source: str, num_classes: int, iou_type: str) -> list[dict[str, Any]]:
    """Return one image's objects or detections as COCO's annotations.

    Args:
        image: as for `coco_metrics`.
        source: the name of its source, for messages.
        num_classes: labels must be below it.
        iou_type: whether rows have boxes or masks.

    Raises:
        ValueError: a label out of range, or missing masks.
    """
    columns = coco_columns(image, source, num_classes, iou_type)
    plain = {name: column if isinstance(column, list) else column.tolist() for name, column in columns.items()}
    rows = zip(*plain.values(), strict=True)
    return [{"image_id": int(image["image_id"]), **dict(zip(plain, row, strict=True))} for row in rows]


def coco_columns(image: Mapping[str, Any], source: str, num_classes: int, iou_type: str) -> dict[str, Any]:
    """Return the columns of `coco_rows`: arrays with an entry for each row, of masks a list of run lengths.

    Args:
        image: as for `coco_metrics`.
        source: the name of its source, for messages.
        num_classes: labels must be below it.
        iou_type: whether rows have boxes or masks.

    Raises:
        ValueError: as `coco_rows`.
    """
    labels = np.asarray(image["labels"])
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"{source}: image {image['image_id']}, row {row} has label {labels[row]}, but there are "
            f"{num_classes} class names"
        )
    columns: dict[str, Any] = {}
    if iou_type == "segm":
        columns["segmentation"] = _run_lengths(image, f"{source}: image {image['image_id']}", len(labels))
        areas = np.array([coco_mask.area(one) for one in columns["segmentation"]], np.float64)
    else:
        boxes = np.asarray(image["boxes"], np.float64).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        columns["bbox"] = np.concatenate([boxes[:, :2], sides], axis=1)
        areas = sides.prod(axis=1)
    columns |= {
        "category_id": labels,
        "area": np.asarray(image.get("area", areas), np.float64),
        "iscrowd": np.asarray(image.get("iscrowd", np.zeros(len(labels), bool))).astype(int),
    }
    if "scores" in image:
        columns["score"] = np.asarray(image["scores"], np.float64)
    return columns


def _run_lengths(image: Mapping[str, Any], name: str, count: int) -> list[dict[str, Any]]:
    """Return an image's masks as run lengths, one for each label."""
    if "masks" not in image:
        raise ValueError(f'{name} has no "masks", which iou_type "segm" needs')
    if len(image["masks"]) != count:
        raise ValueError(f"{name} has {len(image['masks'])} masks for {count} labels")
    try:
        return run_lengths(image["masks"])
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
