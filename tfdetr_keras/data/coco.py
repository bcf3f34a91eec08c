"""Reads COCO's instances format: a folder of images and one JSON file of annotations."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.border import Border, OnError
from tfdetr_keras.data.box_format import to_xyxy
from tfdetr_keras.data.coco_json import (
    FAULTY_ANNOTATIONS,
    Fault,
    image_fault,
    image_files,
    label_table,
    missing_keys,
    named_image,
    object_fault,
    read_coco_json,
)
from tfdetr_keras.data.files import ImageFiles, Objects, read_files
from tfdetr_keras.data.segmentations import rasterise, segmentation_complaint

WITHOUT_MASK = "objects without a segmentation, whose mask is empty"
_ANNOTATION_KEYS = {"image_id", "category_id", "bbox"}


def load_coco(
    images: str | Path,
    annotations: str | Path,
    category_ids: Literal["contiguous", "original"] = "contiguous",
    masks: bool = False,
    on_error: OnError = "raise",
) -> tuple[tf.data.Dataset, list[str]]:
    """Reads a detection set in COCO's format.

    Images are decoded while the dataset is read, in the order of the JSON file. Boxes are clipped to their image; those
    that cover nothing after it are left out and counted in the dataset's `tally`. Images without objects stay.

    Args:
        images: folder of the images.
        annotations: the instances JSON file. An annotation needs `image_id`, `category_id` and `bbox` (x, y, width,
            height in pixels); `iscrowd` and `area` default to 0 and to the box's area.
        category_ids: "contiguous" numbers the categories 0 .. K - 1 in the order of their ids, and
            `coco_category_ids` leads back; "original" keeps the ids as labels, as the published COCO weights do, and
            names the gaps "N/A".
        masks: whether records have `masks`, from the polygons and run lengths of `segmentation`, which are then kept
            in memory, some 450 bytes an object; an object without has an empty mask and is counted.
        on_error: "raise" an error for what cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names, one per label.

    Raises:
        ValueError: a missing, malformed or empty annotation file, or an image id that appears twice; and, unless they
            are skipped: a missing image file, a malformed annotation, one of an unknown image or category or with the
            id of another, a non-finite or inverted box; while iterating: an image that cannot be read or has another
            size.
    """
    border = Border(on_error)
    images, annotations = Path(images), Path(annotations)
    content = read_coco_json(annotations)
    labels, class_names = label_table(content["categories"], category_ids, annotations)
    files = image_files(content["images"], images, annotations)
    objects = _objects(content["annotations"], files, labels, masks, annotations, border)
    return read_files(files, objects, border, rasterise=_rasterise if masks else None, root=images), class_names


def coco_category_ids(annotations: str | Path) -> list[int]:
    """The category id behind each label that `load_coco` and `load_coco_panoptic` give with contiguous labels.

    Args:
        annotations: the JSON file, of instances or of panoptic segments.

    Raises:
        ValueError: as `load_coco`.
    """
    labels, _ = label_table(read_coco_json(Path(annotations))["categories"], "contiguous", Path(annotations))
    return list(labels)


def _objects(
    entries: list[dict[str, Any]],
    files: ImageFiles,
    labels: dict[int, int],
    masks: bool,
    source: Path,
    border: Border,
) -> Objects:
    """All annotations that can be used, as columns."""
    place_of = {image_id: place for place, image_id in enumerate(files.image_ids.tolist())}
    sound: list[tuple[int, dict[str, Any]]] = []
    seen: dict[Any, int] = {}
    for row, entry in enumerate(entries):
        fault = _fault(entry, place_of, labels, seen)
        if not fault and masks and (segmentation := entry.get("segmentation")):
            size = files.sizes[place_of[entry["image_id"]]].tolist()
            complaint = segmentation_complaint(segmentation, *size)
            fault = (FAULTY_ANNOTATIONS, complaint) if complaint else None
        if fault:
            owner = ""
            if isinstance(entry, dict) and "image_id" in entry:
                owner = f" ({named_image(entry['image_id'], place_of, files)})"
            border.refuse(fault[0], f"{source}: annotations[{row}]{owner} {fault[1]}")
            continue
        if entry.get("id") is not None:
            seen[entry["id"]] = row
        sound.append((row, entry))
    boxes = np.array([entry["bbox"] for _, entry in sound], np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # such boxes will be refused
        box_areas = (boxes[:, 2] * boxes[:, 3]).tolist()
    image = np.array([place_of[entry["image_id"]] for _, entry in sound], np.int64)
    label = np.array([labels[entry["category_id"]] for _, entry in sound], np.int64)

    def describe(row: int) -> str:
        number, entry = sound[row]
        return f"{source}: annotations[{number}] ({named_image(entry['image_id'], place_of, files)})"

    corners, kept = border.admit_boxes(to_xyxy(boxes, "xywh"), label, files.sizes[image], None, describe)
    areas = [
        area if entry.get("area") is None else entry["area"] for (_, entry), area in zip(sound, box_areas, strict=True)
    ]
    segmentations: list[bytes] = []
    if masks:
        # As text again: lists of numbers take several times the memory.
        segmentations = [json.dumps(entry.get("segmentation")).encode() for _, entry in sound]
        for row in np.flatnonzero(kept).tolist():
            if not sound[row][1].get("segmentation"):
                border.tally.add(WITHOUT_MASK, describe(row))
    return Objects(
        image=image,
        boxes=corners,
        labels=label,
        iscrowd=np.array([bool(entry.get("iscrowd", 0)) for _, entry in sound], bool),
        area=np.array(areas, np.float32),
        segmentations=segmentations if masks else None,
    ).rows(kept)


def _rasterise(segmentation: bytes, height: int, width: int) -> np.ndarray:
    return rasterise(json.loads(segmentation), height, width)


def _fault(entry: Any, place_of: dict[int, int], labels: dict[int, int], seen: dict[Any, int]) -> Fault | None:
    """What is wrong with an annotation; None if nothing is, but for its box's sides."""
    if missing := missing_keys(entry, _ANNOTATION_KEYS):
        return FAULTY_ANNOTATIONS, missing
    if fault := image_fault(entry, place_of):
        return fault
    if entry["bbox"] is None:
        return FAULTY_ANNOTATIONS, "has the bbox None, not [x, y, width, height]"
    return object_fault(entry, labels, seen, "annotations")
