"""Panoptic segmentations of images as dictionaries: checked, made from a record's masks, and written in COCO's format.

Such a dictionary is `{"segmentation": (height, width) int, the segment of each pixel, with 0 and below for none;
"segments_info": [{"id": int, "label_id": int, …}, …]}`, as `tfdetr_keras.inference.segments` makes it of a model's
outputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tfdetr_keras.backend.atomic import whole_file, write_text
from tfdetr_keras.data.panoptic_png import NUMBER_OF_IDS, colours_of_ids


class NumberedSegments(NamedTuple):
    """The segments of one image, numbered from 1 in the order of their entries.

    Attributes:
        numbers: `(height, width)` int, of each pixel's segment; 0 = none.
        ids: `(segments,)` int.
        labels: `(segments,)` int.
        iscrowd: `(segments,)` bool.
        areas: `(segments,)` int, pixels.
    """

    numbers: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    areas: np.ndarray


def number_segments(image: Mapping[str, Any], source: str, num_classes: int | None = None) -> NumberedSegments:
    """Check the segmentation of one image.

    Args:
        image: a dictionary as above, with `image_id` if it has one. If entries share id and label, as those of fused
            segments do, the first counts.
        source: what it belongs to, for messages.
        num_classes: labels must lie in 0 .. num_classes - 1; None if that is not known.

    Raises:
        ValueError: a segmentation that is not a map of whole numbers, a label that is not a class, an id with two
            labels, an id below 1, one in the map that is not listed, or the other way round.
    """
    name = source if image.get("image_id") is None else f"{source}: image {image['image_id']}"
    segmentation = np.asarray(image["segmentation"])
    if segmentation.ndim != 2 or not np.issubdtype(segmentation.dtype, np.integer):
        raise ValueError(
            f"{name}: segmentation must be (height, width) of whole numbers, not {segmentation.shape} of "
            f"{segmentation.dtype}"
        )
    entries: dict[int, Mapping[str, Any]] = {}
    for entry in image["segments_info"]:
        segment, label = int(entry["id"]), int(entry["label_id"])
        if segment < 1:
            raise ValueError(f"{name}: segments_info has the id {segment}; ids begin at 1")
        if label < 0 or (num_classes is not None and label >= num_classes):
            classes = "labels begin at 0" if num_classes is None else f"there are {num_classes} classes"
            raise ValueError(f"{name}: segment {segment} has label {label}, but {classes}")
        if int(entries.setdefault(segment, entry)["label_id"]) != label:
            raise ValueError(f"{name}: segment {segment} has two labels, {entries[segment]['label_id']} and {label}")
    segmentation = np.maximum(segmentation, 0).astype(np.int64)
    listed = np.array([0, *entries], np.int64)
    order = np.argsort(listed)
    numbers = order[np.minimum(np.searchsorted(listed[order], segmentation), len(listed) - 1)]
    unlisted = segmentation[listed[numbers] != segmentation]
    if len(unlisted):
        raise ValueError(f"{name}: segmentation has pixels of segment {unlisted.min()}, which segments_info lacks")
    areas = np.bincount(numbers.ravel(), minlength=len(listed))[1:]
    if not areas.all():
        lost = listed[1:][areas == 0].min()
        raise ValueError(f"{name}: segmentation has no pixel of segment {lost}, which segments_info lists")
    return NumberedSegments(
        numbers=numbers,
        ids=listed[1:],
        labels=np.array([entry["label_id"] for entry in entries.values()], np.int64),
        iscrowd=np.array([bool(entry.get("iscrowd", False)) for entry in entries.values()], bool),
        areas=areas,
    )


def panoptic_truth(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the panoptic segmentation that a record's masks make up, as `panoptic_quality` takes it.

    Args:
        record: of a panoptic set, with `masks`, as numpy arrays; see `tfdetr_keras.data.record`.

    Returns:
        `{"image_id": int, "segmentation": (height, width) int32, "segments_info": [{"id": int, from 1, "label_id": int,
        "iscrowd": bool}, …]}`.

    Raises:
        ValueError: no masks, an empty one, or two with a pixel in common.
    """
    name = f"image {int(record['image_id'])}"
    if "masks" not in record:
        raise ValueError(f"{name} has no masks: read the set with load_coco_panoptic")
    masks = np.asarray(record["masks"], bool)
    segmentation = np.zeros(masks.shape[1:], np.int32)
    for row, mask in enumerate(masks):
        if not mask.any():
            raise ValueError(f"{name}: the mask of object {row} is empty")
        if segmentation[mask].any():
            raise ValueError(
                f"{name}: the mask of object {row} overlaps an earlier one, but those of a panoptic set do not"
            )
        segmentation[mask] = row + 1
    labels, iscrowd = (np.asarray(record[key]).tolist() for key in ("labels", "iscrowd"))
    segments_info = [
        {"id": number, "label_id": label, "iscrowd": crowd}
        for number, (label, crowd) in enumerate(zip(labels, iscrowd, strict=True), start=1)
    ]
    return {"image_id": int(record["image_id"]), "segmentation": segmentation, "segments_info": segments_info}


def write_coco_panoptic(
    predictions: Iterable[Mapping[str, Any]], path: str | Path, category_ids: Sequence[int] | None = None
) -> None:
    """Write segmentations in COCO's panoptic results format, which `panopticapi` and evaluation servers read.

    A folder `results` is made beside `path`, `results.json`, where `panopticapi` looks for the PNG files. These are
    named by their image ids in 12 digits, like COCO's. Images are taken one by one; the JSON file appears only once
    all of them are written.

    Args:
        predictions: per image `{"image_id": int, "segmentation": (height, width) int, "segments_info": [{"id": int from
            1 to 2²⁴ − 1, "label_id": int, …}, …]}`; 0 and below are no segment.
        path: of the JSON file, which ends in ".json".
        category_ids: the id of each label, e.g. from `td.data.coco_category_ids`; the labels themselves by default.

    Raises:
        ValueError: another ending, an image twice, an id that is too large; see also `number_segments`.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"{path} does not end in .json: the folder of the PNG files has the name without it")
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    annotations: dict[int, dict[str, Any]] = {}
    for image in predictions:
        image_id = int(image["image_id"])
        if image_id in annotations:
            raise ValueError(f"predictions: image {image_id} appears more than once")
        segments = number_segments(image, "predictions", None if category_ids is None else len(category_ids))
        if segments.ids.max(initial=0) >= NUMBER_OF_IDS:
            raise ValueError(
                f"predictions: image {image_id} has the segment {segments.ids.max()}, but a colour holds ids up to "
                f"{NUMBER_OF_IDS - 1}"
            )
        file_name = f"{image_id:012d}.png"
        with whole_file(folder / file_name) as partial:
            Image.fromarray(colours_of_ids(np.append(0, segments.ids)[segments.numbers])).save(partial)
        categories = segments.labels.tolist()
        if category_ids is not None:
            categories = [int(category_ids[label]) for label in categories]
        segments_info = [
            {"id": segment, "category_id": category}
            for segment, category in zip(segments.ids.tolist(), categories, strict=True)
        ]
        annotations[image_id] = {"image_id": image_id, "file_name": file_name, "segments_info": segments_info}
    write_text(path, json.dumps({"annotations": list(annotations.values())}))
