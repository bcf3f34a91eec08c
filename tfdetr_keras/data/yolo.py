"""Reader of the folders that YOLO trainers use: one text file of relative boxes per image."""

import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.class_names import note_renamed, tidy_names
from tfdetr_keras.data.files import (
    UNKNOWN_SIZE,
    ImageFiles,
    Objects,
    ids_of_names,
    place_in,
    read_files,
    read_text,
)
from tfdetr_keras.data.image_formats import is_read
from tfdetr_keras.data.listing import entries_of, files_below, images_below
from tfdetr_keras.data.validation import OnError, Validation
from tfdetr_keras.data.yolo_description import read_description
from tfdetr_keras.data.yolo_lines import Line, Lines, boxes_of, is_more_than_a_box, parse_line, shortened

FAULTY_FILES = "label files that cannot be read"
FAULTY_LINES = "label lines that cannot be read"
LABELS_WITHOUT_IMAGE = "label files without an image"
NO_LABELS = "sets without any label file"
SHARED_LABELS = "images whose label file is that of another"
PASSED_OVER = "label lines of which only the box is read"
NAME_LISTS = ("classes.txt", "obj.names", "labels/classes.txt", "_darknet.labels")
DARKNET = "obj.data"  # says where the splits and the names are, `key = value` a line
SPLITS = ("train", "val", "valid", "test")
MOST_NAMED = 8  # entries of a folder in a message
MOST_SHOWN = 200  # characters of an entry in a message
_SYNONYMS = {"val": "valid", "valid": "val"}  # Roboflow's YAML file says val, its folder is valid


def load_yolo(
    folder: str | Path,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    on_error: OnError = "raise",
    lines: Lines = "auto",
) -> tuple[tf.data.Dataset, list[str]]:
    """Read a detection set in YOLO's layout.

    A label file's path is that of its image, with `labels` for `images` and `.txt` for the suffix, or it stands
    beside its image. Each of its lines is `class cx cy w h`, relative to the image, or `class x y x y x y …`, a
    polygon, whose box is taken. In a pose set, whose `data.yaml` has a `kpt_shape`, keypoints follow the box and are
    ignored. Where a confidence, a track or keypoints without a `kpt_shape` may follow a box, the lines of the set
    together decide, see `tfdetr_keras.data.yolo_lines`; a line that they leave open is refused until `lines` decides.

    An image without a label file has no objects, but at least one image must have one. Images are decoded while the
    dataset is read, in the order of their paths; `image_id` is the number in a file's name, if all names are
    numbers, else its place. `area` is that of the box.

    Args:
        folder: of the set, with a `data.yaml` that has `names` and the splits' image folders; or with folders `images`
            and `labels`, of the set or of each split, and the names in `classes.txt`; or as CVAT exports "YOLO 1.1",
            with `obj.data`, `obj.names` and a list of images for each split; or with images, label files and
            `classes.txt` all beside one another, as labelImg saves them.
        split: "train", "val" or "test": an entry of the YAML file or of `obj.data`, or else a folder within `images`,
            one that holds `images` or the images themselves, or a text file that lists them; "valid" is "val" where
            there is only one of them. By default "train" of the YAML file or `obj.data`, or everything in `images`, or
            in the folder itself.
        class_names: name of each class number; by default those of the folder.
        on_error: "raise" an error for data that cannot be used, or "skip" it and count it in the dataset's `tally`.
        lines: what the lines are: "auto" decides by their numbers; "boxes": each begins with a box, and what follows
            is ignored; "polygons": those of six numbers or more are polygons.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names, made fit for files and tables by
        `tfdetr_keras.data.class_names.tidy_names`.

    Raises:
        ValueError: no such folder or split, no images or no class names, a malformed YAML file, another `lines`. Unless
            skipped: no label file at all, one without an image or with several, a malformed line, one that may be a box
            or a polygon, a class number without a name, a non-finite or inverted box, a missing image. While iterating:
            an image that cannot be read.
    """
    if lines not in get_args(Lines):
        raise ValueError(f"lines must be one of {get_args(Lines)}, not {lines!r}")
    validation = Validation(on_error)
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    description, description_file = read_description(folder)
    darknet = _darknet(folder)
    raw_names = list(_class_names(folder, description, darknet) if class_names is None else class_names)
    source = "class_names" if class_names is not None else description_file or folder
    class_names = tidy_names(raw_names, source)
    note_renamed(raw_names, class_names, source, validation.tally)
    places = _places(folder, description, darknet, split)
    paths = _images(places, validation)
    label_files = [_label_file(path) for path in paths]
    if not any(file.is_file() for file in label_files):
        validation.refuse(
            NO_LABELS, f"{folder}: no image has a label file; that of {paths[0]} would be {label_files[0]}"
        )
    for stray in _strays(places, paths, label_files):
        validation.refuse(LABELS_WITHOUT_IMAGE, f"{stray} is the label file of no image")
    paths, label_files = _one_per_label_file(paths, label_files, validation)

    images, rows, labels, boxes = [], [], [], []
    for line, box in _read_lines(label_files, lines, math.prod(description.get("kpt_shape") or [0]), validation):
        images.append(line.file)
        rows.append(line.row)
        labels.append(line.label)
        boxes.append(box)
    label_array = np.array(labels, np.int64)
    corners, kept = validation.admit_boxes(
        np.array(boxes, np.float64).reshape(-1, 4),
        label_array,
        np.ones(2),
        len(class_names),
        lambda row: f"{label_files[images[row]]}, line {rows[row]}",
    )
    files = ImageFiles(paths, ids_of_names([path.stem for path in paths]), np.tile(UNKNOWN_SIZE, (len(paths), 1)))
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    objects = Objects(np.array(images, np.int64), corners, label_array, np.zeros(len(labels), bool), area).rows(kept)
    return read_files(files, objects, validation, relative=True, root=folder), class_names


def _darknet(folder: Path) -> dict[str, str]:
    """Return the entries of `obj.data`; none if there is no such file."""
    if not (folder / DARKNET).is_file():
        return {}
    pairs = (line.partition("=") for line in read_text(folder / DARKNET).splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip() and value.strip()}


def _class_names(folder: Path, description: dict[str, Any], darknet: dict[str, str]) -> list[str]:
    if description.get("names"):
        return description["names"]
    for name_list in (*NAME_LISTS, *(f"{split}/_darknet.labels" for split in SPLITS)):
        if (folder / name_list).is_file():
            return _lines_of(folder / name_list)
    if "names" in darknet:
        return _lines_of(_resolved(folder, folder, darknet["names"], DARKNET))
    raise ValueError(f"{folder} does not name its classes: give class_names, or a data.yaml with names, or classes.txt")


def _lines_of(file: Path) -> list[str]:
    """Return the lines of a list; empty lines at its end do not count, an empty line in between is an invalid name."""
    return [line.strip() for line in re.split("\r\n|\r|\n", read_text(file).rstrip())]


def _places(folder: Path, description: dict[str, Any], darknet: dict[str, str], split: str | None) -> list[Path]:
    """Return the folders of a split's images, or text files that list them."""
    root = place_in(folder, description["path"]) if isinstance(description.get("path"), str) else folder
    root = root if os.path.isdir(root) else folder  # the path is often that of another machine
    names = [split, _SYNONYMS.get(split, split)] if split else ["train"]
    looked_for: list[Path] = []
    for name in names:
        for entries, source in ((description.get(name), "the YAML file"), (darknet.get(name), DARKNET)):
            if entries is not None:
                listed = entries if isinstance(entries, list) else [entries]
                return [_resolved(root, folder, str(entry).replace("\\", "/"), source) for entry in listed]
        if split:
            candidates = [folder / "images" / name, folder / name / "images", folder / name]
        else:
            candidates = [folder / "images", folder]
        found = next((place for place in candidates if _holds_a_split(place, place in candidates[-1:])), None)
        # `images/train` need not hold an image to be meant; any other folder must.
        found = found or next((file for file in [folder / f"{name}.txt"] if file.is_file()), None)
        if found is not None:
            return [found]
        looked_for += [*candidates, folder / f"{name}.txt"]
    missing = f"split {split!r}" if split else "folder images"
    splits = _splits(folder, description, darknet)
    message = f"{folder} has no {missing}; its splits are: {', '.join(splits) or 'none'}"
    if not splits:
        there = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries_of(folder))
        named = ", ".join(there[:MOST_NAMED]) + (f" and {len(there) - MOST_NAMED} more" if there[MOST_NAMED:] else "")
        wanted = ", ".join(f"{_relative(place, folder)}" for place in dict.fromkeys(looked_for))
        message += f"; looked for a data.yaml or {DARKNET} that names it, and for images in {wanted}"
        message += f"; the folder holds {named or 'nothing'}"
    raise ValueError(message)


def _holds_a_split(place: Path, itself: bool) -> bool:
    """Return whether a folder holds a split's images: by its place or, if that says nothing, by images in it."""
    return place.is_dir() and (not itself or bool(_image_files(entries_of(place))))


def _relative(place: Path, folder: Path) -> str:
    return "the folder itself" if place == folder else str(place.relative_to(folder))


def _splits(folder: Path, description: dict[str, Any], darknet: dict[str, str]) -> list[str]:
    found = {name for name in SPLITS if name in description or name in darknet or (folder / f"{name}.txt").is_file()}
    found |= {name for name in SPLITS if _holds_a_split(folder / name, itself=True)}
    found |= {place.name for place in entries_of(folder / "images") if place.is_dir()}
    return sorted(found | {place.name for place in entries_of(folder) if (place / "images").is_dir()})


def _resolved(root: Path, folder: Path, entry: str, source: str) -> Path:
    """Return the path of a split, given relative to the set's root.

    Some exporters write it relative to a folder beside or above.
    """
    candidates = [
        root / entry,
        folder / entry,
        folder / entry.removeprefix("../"),
        folder / entry.removeprefix("data/"),
    ]
    for candidate in candidates:
        if os.path.exists(candidate):
            return candidate
    raise ValueError(f"{folder}: {source} names {entry[:MOST_SHOWN]}, which does not exist")


def _images(places: Sequence[Path], validation: Validation) -> list[Path]:
    """Return the images of a split, sorted."""
    found: set[Path] = set()
    for place in places:
        if place.is_file():  # a list of images
            listed = [line.strip() for line in read_text(place).splitlines() if line.strip()]
            found |= {_listed_image(place.parent, line) for line in listed}
        else:
            found |= set(images_below(place, validation))
    if not found:
        raise ValueError(f"the set is empty: there is no image in {', '.join(map(str, places))}")
    return sorted(found)


def _listed_image(folder: Path, line: str) -> Path:
    """Return the image that a list names.

    CVAT writes `data/` in front, for a folder that the set is to be put into.
    """
    without = place_in(folder, line.replace("\\", "/").removeprefix("data/"))
    image = place_in(folder, line)
    return without if not os.path.exists(image) and os.path.exists(without) else image


def _image_files(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if is_read(file.suffix)]


def _strays(places: Sequence[Path], paths: Sequence[Path], label_files: Sequence[Path]) -> list[Path]:
    """Return label files beside those of a split that belong to no image, not even one of another split."""
    texts = {file for folder in {file.parent for file in label_files} for file in entries_of(folder)}
    for place in places:
        labels = _label_file(place / "any").parent
        if place.is_dir() and labels.is_dir():
            texts |= set(files_below(labels))
    neighbours = _image_files(file for folder in {path.parent for path in paths} for file in entries_of(folder))
    known = {*label_files, *places, *map(_label_file, neighbours)}
    others = {Path(name).name for name in NAME_LISTS}
    return sorted(
        file for file in texts - known if file.suffix.lower() == ".txt" and file.name not in others and file.is_file()
    )


def _label_file(image: Path) -> Path:
    """Return the label file of an image.

    The last `images` of the path becomes `labels`; if there is no such file, the one beside the image counts.
    """
    beside = image.with_suffix(".txt")
    parts = list(image.parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    apart = Path(*parts).with_suffix(".txt")
    return beside if not apart.is_file() and beside.is_file() else apart


def _one_per_label_file(
    paths: Sequence[Path], label_files: Sequence[Path], validation: Validation
) -> tuple[list[Path], list[Path]]:
    """Leave out images that share a label file with another: its boxes can belong to only one of them."""
    owners: dict[Path, Path] = {}
    kept = []
    for path, file in zip(paths, label_files, strict=True):
        owner = owners.setdefault(file, path) if file.is_file() else path
        if owner != path:
            remedy = "remove or rename one of them, or move it to a folder of its own"
            validation.refuse(SHARED_LABELS, f"{owner} and {path} have one label file, {file}", remedy)
        else:
            kept.append((path, file))
    return [path for path, _ in kept], [file for _, file in kept]


def _read_lines(
    label_files: Sequence[Path], lines_are: Lines, keypoint_values: int, validation: Validation
) -> list[tuple[Line, list[float]]]:
    """Return all usable lines of all files, and their relative corners."""
    lines, texts = [], []
    for place, file in enumerate(label_files):
        for row, text in _lines(file, validation):
            try:
                label, values = parse_line(text)
            except ValueError as error:
                validation.refuse(FAULTY_LINES, f"{file}, line {row}: {error}")
                continue
            lines.append(Line(place, row, label, values))
            texts.append(text)
    found = []
    boxes = boxes_of(lines, lines_are, keypoint_values)
    for line, text, box in zip(lines, texts, boxes, strict=True):
        where = f"{label_files[line.file]}, line {line.row}"
        if isinstance(box, str):
            validation.refuse(FAULTY_LINES, f"{where}: {shortened(text)} {box}")
            continue
        if not keypoint_values and lines_are == "auto" and is_more_than_a_box(line.values, box):
            validation.tally.add(PASSED_OVER, f"{where}: {shortened(text)} is a box with more after it")
        found.append((line, box))
    return found


def _lines(file: Path, validation: Validation) -> list[tuple[int, str]]:
    """Return the non-empty lines of a label file and their numbers from 1 on; none if there is no file."""
    try:
        lines = read_text(file).splitlines() if file.is_file() else []
    except ValueError as error:
        validation.refuse(FAULTY_FILES, str(error))
        return []
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
