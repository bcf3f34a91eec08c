"""The common part of COCO's annotation files: images, categories, and the faults of an object's entry."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from tfdetr_keras.data.class_names import UNUSED_NAME, note_renamed, tidy_names
from tfdetr_keras.data.files import ImageFiles, place_in
from tfdetr_keras.data.segmentations import is_number, is_whole
from tfdetr_keras.data.validation import Validation

MAX_AREA = 2.0**62  # pixels², of the largest image that could be described
FAULTY_ANNOTATIONS = "annotations that cannot be read"
UNKNOWN_IMAGES = "annotations of unknown images"
UNKNOWN_CATEGORIES = "annotations of unknown categories"
REPEATED_ANNOTATIONS = "annotations with the id of another"
REPEATED_FILES = "images whose file is that of another"
_REQUIRED_KEYS = {"images": {"id", "file_name", "height", "width"}, "categories": {"id", "name"}, "annotations": set()}

Fault = tuple[str, str]  # its kind, as the validation counts it, and a complaint that goes on from the entry's name


def read_coco_json(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read an annotation file; its images and categories are complete, and their ids are whole numbers.

    Raises:
        ValueError: no file, not JSON, not COCO's format.
    """
    if not path.is_file():
        raise ValueError(f"there is no annotation file {path}")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # also covers bytes that are not UTF-8
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    for part, keys in _REQUIRED_KEYS.items():
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(f"{path} is not COCO's format: it has no list {part!r}")
        for row, entry in enumerate(content[part]):
            if missing := missing_keys(entry, keys):
                raise ValueError(f"{path}: {part}[{row}] {missing}")
            if "id" in keys and not (is_whole(entry["id"]) and abs(entry["id"]) < 2**63):
                raise ValueError(f"{path}: {part}[{row}] has the id {entry['id']!r}, not a whole number")
    return content


def missing_keys(entry: Any, keys: set[str]) -> str:
    """Return a complaint that names the keys an entry lacks; "" if it lacks none."""
    missing = keys - entry.keys() if isinstance(entry, dict) else keys
    return f"has no {', '.join(sorted(missing))}" if missing else ""


def label_table(
    categories: list[dict[str, Any]], category_ids: str, source: Path, validation: Validation | None = None
) -> tuple[dict[int, int], list[str]]:
    """Return category id -> label, and the names of all labels, made fit for files and tables (see `tidy_names`).

    Args:
        categories: as in the file.
        category_ids: "contiguous" or "original", see `load_coco`.
        source: the file, for messages.
        validation: counts the names that were changed.

    Raises:
        ValueError: another `category_ids`, no categories, two with one id, or an invalid name.
    """
    if category_ids not in ("contiguous", "original"):
        raise ValueError(f'category_ids must be "contiguous" or "original", not {category_ids!r}')
    by_id = sorted(categories, key=lambda category: category["id"])
    names = {category["id"]: str(category["name"]) for category in by_id}
    if not names or len(names) != len(categories) or min(names) < 0:
        raise ValueError(f"{source}: categories must have different ids from 0 on, at least one")
    tidy = dict(zip(names, tidy_names(names.values(), source), strict=True))
    if validation is not None:
        note_renamed(list(names.values()), list(tidy.values()), source, validation.tally)
    if category_ids == "contiguous":
        return {category_id: label for label, category_id in enumerate(tidy)}, list(tidy.values())
    return {category_id: category_id for category_id in tidy}, [
        tidy.get(category_id, UNUSED_NAME) for category_id in range(max(tidy) + 1)
    ]


def image_files(
    entries: list[dict[str, Any]], folder: Path, source: Path, validation: Validation
) -> tuple[ImageFiles, dict[int, int]]:
    """Return the files of the images, in the order of the entries, and the ids of images that share a file.

    Args:
        entries: the file's `images`.
        folder: that file names are relative to.
        source: the file, for messages.
        validation: decides what happens if two images name one file; the second is left out. The annotations of both
            belong to one picture, which would otherwise be shown with some of them, or as empty.

    Returns:
        The files, and the id of a left-out image -> the id of the image whose file it shares.

    Raises:
        ValueError: no images, two with one id, a name that is not text or an invalid size; two with one file.
    """
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
    paths = [place_in(folder, entry["file_name"]) for entry in entries]
    owners: dict[str, int] = {}
    joined: dict[int, int] = {}
    for place, path in enumerate(paths):
        owner = owners.setdefault(os.path.normpath(path), place)
        if owner != place:
            ids = entries[owner]["id"], entries[place]["id"]
            rows = f"images[{owner}] (id {ids[0]}) and images[{place}] (id {ids[1]})"
            remedy = 'list it once, or use on_error="skip", which leaves out the second and joins their annotations'
            validation.refuse(REPEATED_FILES, f"{source}: {rows} are one file, {path}", remedy)
            joined[ids[1]] = ids[0]
    kept = [place for place, entry in enumerate(entries) if entry["id"] not in joined]
    files = ImageFiles(
        paths=[paths[place] for place in kept],
        image_ids=np.array([entries[place]["id"] for place in kept], np.int64),
        sizes=np.array([(entries[place]["height"], entries[place]["width"]) for place in kept], np.int32),
    )
    return files, joined


def image_fault(entry: dict[str, Any], place_of: dict[int, int]) -> Fault | None:
    """Return what is wrong with an entry's `image_id`; None if nothing is."""
    return _reference_fault("image", entry["image_id"], place_of, UNKNOWN_IMAGES)


def named_image(image_id: Any, place_of: dict[int, int], files: ImageFiles) -> str:
    """Return the name of an annotation's image for messages: its id, and its file if the id is one of the set's."""
    known = is_number(image_id) and image_id in place_of
    return f"image {image_id!r}" + (f", {files.paths[place_of[image_id]]}" if known else "")


def object_fault(entry: dict[str, Any], labels: dict[int, int], seen: dict[Any, int], part: str) -> Fault | None:
    """Return what is wrong with an object's entry, apart from its box's sides; None if nothing is.

    Args:
        entry: with a `category_id`; a `bbox`, `area`, `iscrowd` or `id` of None counts as missing.
        labels: of the category ids.
        seen: the places of the ids before it.
        part: the name of the list that these are places of.
    """
    bbox, area, iscrowd, own_id = (entry.get(key) for key in ("bbox", "area", "iscrowd", "id"))
    if fault := _reference_fault("category", entry["category_id"], labels, UNKNOWN_CATEGORIES):
        return fault
    if bbox is not None and not (isinstance(bbox, list) and len(bbox) == 4 and all(map(is_number, bbox))):
        return FAULTY_ANNOTATIONS, f"has the bbox {bbox}, not [x, y, width, height]"
    if area is not None and not (is_number(area) and 0 <= area <= MAX_AREA):
        return FAULTY_ANNOTATIONS, f"has the area {area!r}, not a number of pixels"
    if iscrowd not in (None, 0, 1):
        return FAULTY_ANNOTATIONS, f"has iscrowd {iscrowd!r}, not 0 or 1"
    if not isinstance(own_id, (int, float, str, type(None))):
        return FAULTY_ANNOTATIONS, f"has the id {own_id}"
    if own_id in seen:
        return REPEATED_ANNOTATIONS, f"has the id {own_id} of {part}[{seen[own_id]}]"
    return None


def _reference_fault(key: str, value: Any, table: dict[int, int], kind: str) -> Fault | None:
    if not is_number(value) or value not in table:
        return kind, f"has {key} {value!r}, which is not listed"
    return None
