"""Reads COCO's instances format: a folder of images and one JSON file of annotations."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.border import Border, OnError
from tfdetr_keras.data.box_format import to_xyxy
from tfdetr_keras.data.files import ImageFiles, Objects, place_in, read_files
from tfdetr_keras.data.segmentations import is_number, is_whole, rasterise, segmentation_complaint

UNUSED_NAME = "N/A"  # the class name of an id that COCO does not use
MAX_AREA = 2.0**62  # pixels², of the largest image that could be described
FAULTY_ANNOTATIONS = "annotations that cannot be read"
UNKNOWN_IMAGES = "annotations of unknown images"
UNKNOWN_CATEGORIES = "annotations of unknown categories"
REPEATED_ANNOTATIONS = "annotations with the id of another"
WITHOUT_MASK = "objects without a segmentation, whose mask is empty"
_REQUIRED_KEYS = {"images": {"id", "file_name", "height", "width"}, "categories": {"id", "name"}, "annotations": set()}
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
    content = _read_json(annotations)
    labels, class_names = _label_table(content["categories"], category_ids, annotations)
    files = _image_files(content["images"], images, annotations)
    objects = _objects(content["annotations"], files, labels, masks, annotations, border)
    return read_files(files, objects, border, rasterise=_rasterise if masks else None), class_names


def coco_category_ids(annotations: str | Path) -> list[int]:
    """The category id behind each label that `load_coco` gives with contiguous labels.

    Args:
        annotations: the instances JSON file.

    Raises:
        ValueError: as `load_coco`.
    """
    labels, _ = _label_table(_read_json(Path(annotations))["categories"], "contiguous", Path(annotations))
    return list(labels)


def _read_json(path: Path) -> dict[str, list[dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"there is no annotation file {path}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # also covers bytes that are not UTF-8
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    for part, keys in _REQUIRED_KEYS.items():
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(f"{path} is not COCO's instances format: it has no list {part!r}")
        for row, entry in enumerate(content[part]):
            if keys and not (isinstance(entry, dict) and keys <= entry.keys()):
                raise ValueError(f"{path}: {part}[{row}] {_missing(entry, keys)}")
            if "id" in keys and not (is_whole(entry["id"]) and abs(entry["id"]) < 2**63):
                raise ValueError(f"{path}: {part}[{row}] has the id {entry['id']!r}, not a whole number")
    return content


def _missing(entry: Any, keys: set[str]) -> str:
    return f"has no {', '.join(sorted(keys - entry.keys() if isinstance(entry, dict) else keys))}"


def _label_table(categories: list[dict[str, Any]], category_ids: str, source: Path) -> tuple[dict[int, int], list[str]]:
    """Category id -> label, and the names of all labels."""
    if category_ids not in ("contiguous", "original"):
        raise ValueError(f'category_ids must be "contiguous" or "original", not {category_ids!r}')
    by_id = sorted(categories, key=lambda category: category["id"])
    names = {category["id"]: str(category["name"]) for category in by_id}
    if not names or len(names) != len(categories) or min(names) < 0:
        raise ValueError(f"{source}: categories must have different ids from 0 on, at least one")
    if category_ids == "contiguous":
        return {category_id: label for label, category_id in enumerate(names)}, list(names.values())
    return {category_id: category_id for category_id in names}, [
        names.get(category_id, UNUSED_NAME) for category_id in range(max(names) + 1)
    ]


def _image_files(entries: list[dict[str, Any]], folder: Path, source: Path) -> ImageFiles:
    if not entries:
        raise ValueError(f"{source} lists no images")
    place_of: dict[int, int] = {}
    for place, entry in enumerate(entries):
        if entry["id"] in place_of:
            both = f"images[{place_of[entry['id']]}] and images[{place}]"
            raise ValueError(f"{source}: {both} have the same id, {entry['id']}: annotations could belong to either")
        place_of[entry["id"]] = place
        if not isinstance(entry["file_name"], str):
            raise ValueError(f"{source}: images[{place}] has the file_name {entry['file_name']!r}, not a text")
        for side in ("height", "width"):
            if not is_whole(entry[side]) or not 0 < entry[side] < 2**31:
                raise ValueError(f"{source}: images[{place}] has the {side} {entry[side]!r}, not a number of pixels")
    return ImageFiles(
        paths=[place_in(folder, entry["file_name"]) for entry in entries],
        image_ids=np.array(list(place_of), np.int64),
        sizes=np.array([(entry["height"], entry["width"]) for entry in entries], np.int32),
    )


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
            owner = f" (image {entry['image_id']!r})" if isinstance(entry, dict) and "image_id" in entry else ""
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
        return f"{source}: annotations[{sound[row][0]}] (image {sound[row][1]['image_id']})"

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


def _fault(
    entry: Any, place_of: dict[int, int], labels: dict[int, int], seen: dict[Any, int]
) -> tuple[str, str] | None:
    """The kind of what is wrong with an annotation, and a complaint; None if nothing is, but for its box's sides."""
    if not isinstance(entry, dict) or not entry.keys() >= _ANNOTATION_KEYS:
        return FAULTY_ANNOTATIONS, _missing(entry, _ANNOTATION_KEYS)
    bbox, area, iscrowd = (entry.get(key) for key in ("bbox", "area", "iscrowd"))
    for key, table, kind in (("image", place_of, UNKNOWN_IMAGES), ("category", labels, UNKNOWN_CATEGORIES)):
        value = entry[f"{key}_id"]
        if not is_number(value) or value not in table:
            return kind, f"has {key} {value!r}, which is not listed"
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
        return FAULTY_ANNOTATIONS, f"has the bbox {bbox}, not [x, y, width, height]"
    if area is not None and not (is_number(area) and 0 <= area <= MAX_AREA):
        return FAULTY_ANNOTATIONS, f"has the area {area!r}, not a number of pixels"
    if iscrowd not in (None, 0, 1):
        return FAULTY_ANNOTATIONS, f"has iscrowd {iscrowd!r}, not 0 or 1"
    annotation_id = entry.get("id")
    if not isinstance(annotation_id, (int, float, str, type(None))):
        return FAULTY_ANNOTATIONS, f"has the id {annotation_id}"
    if annotation_id in seen:
        return REPEATED_ANNOTATIONS, f"has the id {annotation_id} of annotations[{seen[annotation_id]}]"
    return None
