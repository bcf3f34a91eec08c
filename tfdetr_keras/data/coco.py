"""Reader of COCO's instances format: a folder of images and one JSON file of annotations."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.areas import NOT_BELIEVED, not_believed, segmentation_area
from tfdetr_keras.data.box_format import to_xyxy
from tfdetr_keras.data.coco_json import (
    FAULTY_ANNOTATIONS,
    REPEATED_ANNOTATIONS,
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
from tfdetr_keras.data.segmentations import is_whole, rasterise, segmentation_complaint
from tfdetr_keras.data.validation import OnError, Validation

SHARED_IDS = "annotations that share their id with another"
WITHOUT_MASK = "objects without a segmentation, whose mask is empty"
_ANNOTATION_KEYS = {"image_id", "category_id", "bbox"}


def load_coco(
    images: str | Path,
    annotations: str | Path,
    category_ids: Literal["contiguous", "original"] = "contiguous",
    masks: bool = False,
    on_error: OnError = "raise",
) -> tuple[tf.data.Dataset, list[str]]:
    """Read a detection set in COCO's format.

    Images are decoded while the dataset is read, in the order of the JSON file. Boxes are clipped to their image; boxes
    that cover nothing after that are left out and counted in the dataset's `tally`. Images without objects stay.

    Args:
        images: folder of the images.
        annotations: the instances JSON file. An annotation needs `image_id`, `category_id` and `bbox` (x, y, width,
            height in pixels); `iscrowd` and `area` default to 0 and to the box's area. An `area` that an object in its
            box cannot have, such as 0, is replaced by the area of the segmentation, or else of the box, and counted as
            noticed.
        category_ids: "contiguous" numbers the categories 0 .. K - 1 in the order of their ids, and
            `coco_category_ids` leads back; "original" keeps the ids as labels, as the published COCO weights do, and
            names the gaps "N/A".
        masks: whether records have `masks`, from the polygons and run lengths of `segmentation`, which are then kept
            in memory, some 450 bytes an object; an object without one has an empty mask and is counted.
        on_error: "raise" an error for data that cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names, one per label.

    Raises:
        ValueError: a missing, malformed or empty annotation file, or an image id that appears twice. Unless skipped: a
            missing image file, one that two images name, a malformed annotation, one of an unknown image or category,
            one that is listed twice, a non-finite or inverted box. While iterating: an image that cannot be read or has
            another size.
    """
    validation = Validation(on_error)
    images, annotations = Path(images), Path(annotations)
    content = read_coco_json(annotations)
    labels, class_names = label_table(content["categories"], category_ids, annotations, validation)
    files, joined = image_files(content["images"], images, annotations, validation)
    entries = [
        entry | {"image_id": joined[entry["image_id"]]}
        if joined and isinstance(entry, dict) and is_whole(entry.get("image_id")) and entry["image_id"] in joined
        else entry
        for entry in content["annotations"]
    ]
    objects = _objects(entries, files, labels, masks, annotations, validation)
    return read_files(files, objects, validation, rasterise=_rasterise if masks else None, root=images), class_names


def coco_category_ids(annotations: str | Path) -> list[int]:
    """Return the category id of each label that `load_coco` and `load_coco_panoptic` give with contiguous labels.

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
    validation: Validation,
) -> Objects:
    """Return all usable annotations as columns."""
    place_of = {image_id: place for place, image_id in enumerate(files.image_ids.tolist())}
    sound: list[tuple[int, dict[str, Any]]] = []
    seen: dict[Any, int] = {}
    ids_are_of_use = _ids_are_of_use(entries)
    for row, entry in enumerate(entries):
        fault = _fault(entry, place_of, labels)
        own_id = None if fault else entry.get("id")
        if own_id in seen:
            first = seen[own_id]
            if ids_are_of_use and _same_object(entries[first], entry):
                fault = REPEATED_ANNOTATIONS, f"is annotations[{first}] once more, with the same id {own_id}"
            else:
                owner = named_image(entry["image_id"], place_of, files)
                description = f"{source}: annotations[{row}] ({owner}) has the id {own_id} of annotations[{first}]"
                validation.tally.add(SHARED_IDS, description)
        if not fault and masks and (segmentation := entry.get("segmentation")):
            size = files.sizes[place_of[entry["image_id"]]].tolist()
            complaint = segmentation_complaint(segmentation, *size)
            fault = (FAULTY_ANNOTATIONS, complaint) if complaint else None
        if fault:
            owner = ""
            if isinstance(entry, dict) and "image_id" in entry:
                owner = f" ({named_image(entry['image_id'], place_of, files)})"
            validation.refuse(fault[0], f"{source}: annotations[{row}]{owner} {fault[1]}")
            continue
        if own_id is not None:
            seen.setdefault(own_id, row)
        sound.append((row, entry))
    boxes = np.array([entry["bbox"] for _, entry in sound], np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # such boxes will be refused
        box_areas = (boxes[:, 2] * boxes[:, 3]).tolist()
    image = np.array([place_of[entry["image_id"]] for _, entry in sound], np.int64)
    label = np.array([labels[entry["category_id"]] for _, entry in sound], np.int64)

    def describe(row: int) -> str:
        number, entry = sound[row]
        return f"{source}: annotations[{number}] ({named_image(entry['image_id'], place_of, files)})"

    stated = to_xyxy(boxes, "xywh")
    corners, kept = validation.admit_boxes(stated, label, files.sizes[image], None, describe)
    areas = np.array(
        [
            area if entry.get("area") is None else entry["area"]
            for (_, entry), area in zip(sound, box_areas, strict=True)
        ],
        np.float64,
    )
    for row in np.flatnonzero(not_believed(areas, stated) & kept).tolist():
        size = files.sizes[image[row]].tolist()
        own = segmentation_area(sound[row][1].get("segmentation"), *size)
        if own is None or not_believed(np.array([own]), stated[row : row + 1])[0]:
            own = box_areas[row]
        validation.tally.add(NOT_BELIEVED, f"{describe(row)} has the area {areas[row]:g}; taken for {own:g} pixels²")
        areas[row] = own
    segmentations: list[bytes] = []
    if masks:
        # As text again: lists of numbers take several times the memory.
        segmentations = [json.dumps(entry.get("segmentation")).encode() for _, entry in sound]
        for row in np.flatnonzero(kept).tolist():
            if not sound[row][1].get("segmentation"):
                validation.tally.add(WITHOUT_MASK, describe(row))
    return Objects(
        image=image,
        boxes=corners,
        labels=label,
        iscrowd=np.array([bool(entry.get("iscrowd", 0)) for _, entry in sound], bool),
        area=areas.astype(np.float32),
        segmentations=segmentations if masks else None,
    ).rows(kept)


def _rasterise(segmentation: bytes, height: int, width: int) -> np.ndarray:
    return rasterise(json.loads(segmentation), height, width)


def _ids_are_of_use(entries: list[Any]) -> bool:
    """Return whether ids distinguish annotations: in some files all of them are 0."""
    ids = [repr(entry["id"]) for entry in entries if isinstance(entry, dict) and entry.get("id") is not None]
    return 2 * len(set(ids)) > len(ids)


def _same_object(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in (*_ANNOTATION_KEYS, "segmentation"))


def _fault(entry: Any, place_of: dict[int, int], labels: dict[int, int]) -> Fault | None:
    """Return what is wrong with an annotation, apart from its box's sides; None if nothing is."""
    if missing := missing_keys(entry, _ANNOTATION_KEYS):
        return FAULTY_ANNOTATIONS, missing
    if fault := image_fault(entry, place_of):
        return fault
    if entry["bbox"] is None:
        return FAULTY_ANNOTATIONS, "has the bbox None, not [x, y, width, height]"
    return object_fault(entry, labels, {}, "annotations")
