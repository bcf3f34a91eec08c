"""Reads the folders that YOLO trainers use: one text file of relative boxes per image."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import yaml

from tfdetr_keras.data.border import Border, OnError
from tfdetr_keras.data.box_format import to_xyxy
from tfdetr_keras.data.files import (
    IMAGE_SUFFIXES,
    UNKNOWN_SIZE,
    ImageFiles,
    Objects,
    files_below,
    ids_of_names,
    place_in,
    read_files,
    read_text,
)

FAULTY_FILES = "label files that cannot be read"
FAULTY_LINES = "label lines that cannot be read"
LABELS_WITHOUT_IMAGE = "label files without an image"
NO_LABELS = "sets without any label file"
NAME_LISTS = ("classes.txt", "obj.names", "labels/classes.txt")
SPLITS = ("train", "val", "test")
_SYNONYMS = {"val": "valid", "valid": "val"}  # Roboflow's YAML file says val, its folder is valid


def load_yolo(
    folder: str | Path,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    on_error: OnError = "raise",
) -> tuple[tf.data.Dataset, list[str]]:
    """Reads a detection set in YOLO's layout.

    A label file stands where its image does, with `labels` for `images` in the path and `.txt` for the suffix. Each of
    its lines is `class cx cy w h`, relative to the image, or `class x y x y x y …`, a polygon, whose box is taken. In a
    pose set, whose `data.yaml` has a `kpt_shape`, keypoints follow the box and are passed over. An image without a
    label file has no objects, but one image at least must have one. Images are decoded while the dataset is read, in
    the order of their paths; `image_id` is the number that a file's name is, if all names are numbers, else its place.
    `area` is that of the box.

    Args:
        folder: of the set, with a `data.yaml` that has `names` and the splits' image folders; or with folders `images`
            and `labels`, of the set or of each split, and the names in `classes.txt`.
        split: "train", "val" or "test": an entry of the YAML file, or else a folder within `images`, or one that holds
            `images`; "valid" is "val" where there is only one of them. By default the YAML's "train", or everything in
            `images`.
        class_names: name of each class number; by default those of the folder.
        on_error: "raise" an error for what cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names.

    Raises:
        ValueError: no such folder or split, no images or no class names, a malformed YAML file; and, unless they are
            skipped: no label file at all, one without an image, a malformed line, a class number without a name, a
            non-finite or inverted box; a missing image; while iterating: an image that cannot be read.
    """
    border = Border(on_error)
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    description = _description(folder)
    class_names = list(_class_names(folder, description) if class_names is None else class_names)
    places = _places(folder, description, split)
    paths = _images(places)
    label_files = [_label_file(path) for path in paths]
    if not any(file.is_file() for file in label_files):
        border.refuse(NO_LABELS, f"{folder}: no image has a label file; that of {paths[0]} would be {label_files[0]}")
    for stray in _strays(places, paths, label_files):
        border.refuse(LABELS_WITHOUT_IMAGE, f"{stray} is the label file of no image")

    keypoint_values = math.prod(description.get("kpt_shape") or [0])
    images, rows, labels, boxes = [], [], [], []
    for place, file in enumerate(label_files):
        for row, line in _lines(file, border):
            try:
                label, box = _parse(line, keypoint_values)
            except ValueError as error:
                border.refuse(FAULTY_LINES, f"{file}, line {row}: {error}")
                continue
            images.append(place)
            rows.append(row)
            labels.append(label)
            boxes.append(box)
    label_array = np.array(labels, np.int64)
    corners, kept = border.admit_boxes(
        np.array(boxes, np.float64).reshape(-1, 4),
        label_array,
        np.ones(2),
        len(class_names),
        lambda row: f"{label_files[images[row]]}, line {rows[row]}",
    )
    files = ImageFiles(paths, ids_of_names([path.stem for path in paths]), np.tile(UNKNOWN_SIZE, (len(paths), 1)))
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    objects = Objects(np.array(images, np.int64), corners, label_array, np.zeros(len(labels), bool), area).rows(kept)
    return read_files(files, objects, border, relative=True, root=folder), class_names


def _description(folder: Path) -> dict[str, Any]:
    """The set's YAML file, or nothing if there is none."""
    files = sorted(folder.glob("*.yaml")) + sorted(folder.glob("*.yml"))
    file = next((file for file in files if file.stem == "data"), files[0] if len(files) == 1 else None)
    if file is None:
        return {}
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} does not describe a set: it has no names")
    match content.get("kpt_shape"):
        case None:
            pass
        case [int(count), 2 | 3] if count > 0:
            pass
        case other:
            raise ValueError(f"{file}: kpt_shape must be [number of keypoints, 2 or 3], not {other!r}")
    return content


def _class_names(folder: Path, description: dict[str, Any]) -> list[str]:
    names = description.get("names")
    if isinstance(names, dict) and names:
        if set(names) != set(range(len(names))):
            raise ValueError(f"{folder}: the names of the YAML file must be numbered 0 .. {len(names) - 1}")
        return [str(names[number]) for number in range(len(names))]
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    for name_list in NAME_LISTS:
        if (folder / name_list).is_file():
            return [line.strip() for line in read_text(folder / name_list).splitlines() if line.strip()]
    raise ValueError(f"{folder} does not name its classes: give class_names, or a data.yaml with names, or classes.txt")


def _places(folder: Path, description: dict[str, Any], split: str | None) -> list[Path]:
    """The folders of a split's images, or text files that list them."""
    root = place_in(folder, description["path"]) if isinstance(description.get("path"), str) else folder
    root = root if root.is_dir() else folder  # the path is often that of another machine
    if split:
        names = [split, _SYNONYMS.get(split, split)]
        folders = {name: [folder / "images" / name, folder / name / "images"] for name in names}
    else:
        folders = {"train": [folder / "images"]}
    for name, places in folders.items():
        if (wanted := description.get(name)) is not None:
            entries = wanted if isinstance(wanted, list) else [wanted]
            return [_resolved(root, folder, str(entry).replace("\\", "/")) for entry in entries]
        for place in places:
            if place.is_dir():
                return [place]
    missing = f"split {split!r}" if split else "folder images"
    raise ValueError(f"{folder} has no {missing}; its splits are: {', '.join(_splits(folder, description)) or 'none'}")


def _splits(folder: Path, description: dict[str, Any]) -> list[str]:
    found = {name for name in SPLITS if description.get(name) is not None}
    found |= {place.name for place in _entries(folder / "images") if place.is_dir()}
    return sorted(found | {place.name for place in _entries(folder) if (place / "images").is_dir()})


def _resolved(root: Path, folder: Path, entry: str) -> Path:
    """Where a split is: relative to the set's root; some exporters write it relative to a folder beside."""
    candidates = [root / entry, folder / entry, folder / entry.removeprefix("../")]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise ValueError(f"{folder}: the YAML file names {entry}, which does not exist")


def _images(places: Sequence[Path]) -> list[Path]:
    """The images of a split, sorted."""
    found: set[Path] = set()
    for place in places:
        if place.is_file():  # a list of images
            listed = [line.strip() for line in read_text(place).splitlines() if line.strip()]
            found |= {place_in(place.parent, line) for line in listed}
        else:
            found |= set(_image_files(files_below(place)))
    if not found:
        raise ValueError(f"the set is empty: there is no image in {', '.join(map(str, places))}")
    return sorted(found)


def _image_files(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]


def _strays(places: Sequence[Path], paths: Sequence[Path], label_files: Sequence[Path]) -> list[Path]:
    """Label files beside a split's that belong to no image, of another split neither."""
    texts = {file for folder in {file.parent for file in label_files} for file in _entries(folder)}
    for place in places:
        labels = _label_file(place / "any").parent
        if place.is_dir() and labels.is_dir():
            texts |= set(files_below(labels))
    neighbours = _image_files(file for folder in {path.parent for path in paths} for file in _entries(folder))
    known = {*label_files, *places, *map(_label_file, neighbours)}
    others = {Path(name).name for name in NAME_LISTS}
    return sorted(
        file for file in texts - known if file.suffix.lower() == ".txt" and file.name not in others and file.is_file()
    )


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _label_file(image: Path) -> Path:
    """The last `images` of the path becomes `labels`."""
    parts = list(image.parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _lines(file: Path, border: Border) -> list[tuple[int, str]]:
    """The lines of a label file that are not empty, and their numbers from 1 on; none if there is no file."""
    try:
        lines = read_text(file).splitlines() if file.is_file() else []
    except ValueError as error:
        border.refuse(FAULTY_FILES, str(error))
        return []
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: str, keypoint_values: int) -> tuple[int, list[float]]:
    """The class and the relative corners of one line; `keypoint_values` numbers follow the box, 0 if not a pose set."""
    try:
        number, *values = [float(word) for word in line.split()]
    except ValueError:
        raise ValueError(f"{line!r} is not numbers") from None
    if not abs(number) < 2**31 or number % 1:
        raise ValueError(f"the class {number:g} is not a whole number")
    if len(values) == 4 + keypoint_values:
        return int(number), to_xyxy([values[:4]], "cxcywh")[0].tolist()
    if keypoint_values:
        raise ValueError(f"{line!r} is not class cx cy w h and the {keypoint_values} numbers of kpt_shape")
    if len(values) >= 6 and len(values) % 2 == 0:
        return int(number), [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
    raise ValueError(f"{line!r} is neither class cx cy w h nor class x y x y x y …")
