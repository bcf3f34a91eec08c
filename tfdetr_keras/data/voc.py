"""Reader of the Pascal VOC challenge's format: one XML file of annotations per image."""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.class_names import note_renamed, tidy_name, tidy_names
from tfdetr_keras.data.files import (
    UNKNOWN_SIZE,
    ImageFiles,
    Objects,
    ids_of_names,
    place_in,
    read_files,
    read_text,
)
from tfdetr_keras.data.images import upright_size
from tfdetr_keras.data.listing import files_below, images_below
from tfdetr_keras.data.validation import OnError, Validation

FAULTY_FILES = "annotation files that cannot be read"
SECOND_FILES = "annotation files of images that have another"
UNKNOWN_CLASSES = "objects of unknown classes"
WITHOUT_ANNOTATIONS = "images without an annotation file"
COUNTED_FROM_ZERO = "boxes that begin at pixel 0 in a set that counts from 1"
_ENCODING = re.compile(rb"""\s*<\?xml\b[^>]*?\bencoding\s*=\s*["']([A-Za-z0-9._:-]{1,40})["']""")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def load_voc(
    images: str | Path,
    annotations: str | Path,
    image_set: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    one_based: bool = True,
    on_error: OnError = "raise",
) -> tuple[tf.data.Dataset, list[str]]:
    """Read a detection set in Pascal VOC's format.

    Images are decoded while the dataset is read, in the order of the annotation files' paths or of the image set.
    `image_id` is the number in a file's name, if all names are numbers, else its place. `area` is that of the box.
    Objects marked `difficult` are kept like others.

    Args:
        images: folder of the images, which may be in subfolders.
        annotations: folder of the XML files, which may be in subfolders. Each names its image (`filename`; if there is
            no such image, the one with the XML file's name is taken), looked for in the same subfolder first, and, as
            `object`s, the class (`name`) and the corners (`bndbox`); if it states the image's `size`, this is
            checked.
        image_set: a text file with the names, without suffix, of the annotation files to read, one a line, as in
            `ImageSets/Main`, relative to `annotations`; all files by default. Images without an annotation file are
            then left out and counted.
        class_names: the classes, a name's place is its label; by default those that occur, in alphabetical order.
            Give them when reading part of a set, or parts may differ in their labels.
        one_based: whether pixels count from 1 and `xmax`, `ymax` are the last pixel inside the box, as in the
            challenge; False if corners are coordinates from 0, as many labelling tools write them.
        on_error: "raise" an error for data that cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names.

    Raises:
        ValueError: a missing folder or image set, or an empty one. Unless skipped: a malformed XML file, a missing
            image, one with two XML files, an unknown class, a non-finite or inverted box. While iterating: an image
            that cannot be read or has another size.
    """
    validation = Validation(on_error)
    images, annotations = Path(images), Path(annotations)
    if not images.is_dir():
        raise ValueError(f"there is no folder {images} of images")
    image_files = images_below(images, validation)
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for file in image_files:
        by_name[file.name].append(file)
        by_name[file.stem].append(file)
    paths = _annotation_files(annotations, image_set)
    twins = {path: images / os.path.relpath(path.with_suffix(""), annotations) for path in paths}
    parsed = [(path, _parse(path, twins[path], images, by_name, validation)) for path in paths]
    listed = _one_per_image([(path, content) for path, content in parsed if content is not None], validation)
    found = sorted({name for _, (_, _, names, _) in listed for name in names})
    if not listed or (class_names is None and not found):
        raise ValueError(f"{annotations}: the set is empty: no annotation file that can be read holds an object")
    raw_names = list(found if class_names is None else class_names)
    class_names = tidy_names(raw_names)
    note_renamed(raw_names, class_names, "class_names", validation.tally)
    if image_set is None:
        annotated = {image for _, (image, _, _, _) in listed}
        refused = {twins[path] for path in set(paths).difference(path for path, _ in listed)}
        for file in image_files:
            if file not in annotated and file.with_suffix("") not in refused:
                validation.leave_out(WITHOUT_ANNOTATIONS, str(file))

    files = ImageFiles(
        paths=[image for _, (image, _, _, _) in listed],
        image_ids=ids_of_names([path.stem for path, _ in listed]),
        sizes=np.array([size for _, (_, size, _, _) in listed], np.int32),
    )
    rows = [
        (place, row, name, corners)
        for place, (_, (_, _, names, boxes)) in enumerate(listed)
        for row, (name, corners) in enumerate(zip(names, boxes, strict=True))
        if _known(name, class_names, listed[place][0], row, validation)
    ]
    image = np.array([place for place, *_ in rows], np.int64)
    labels = np.array([class_names.index(name) for _, _, name, _ in rows], np.int64)
    boxes = np.array([corners for *_, corners in rows], np.float64).reshape(-1, 4)

    def describe(row: int) -> str:
        return f"{listed[rows[row][0]][0]}: object {rows[row][1]}"

    if one_based:
        for row in np.flatnonzero((boxes[:, :2] < 1).any(axis=1)).tolist():
            validation.tally.add(COUNTED_FROM_ZERO, f"{describe(row)}; kept, but load_voc may want one_based=False")
        boxes[:, :2] -= 1
    limits = np.array([_limits(content) for _, content in listed])
    corners, kept = validation.admit_boxes(boxes, labels, limits[image], len(class_names), describe)
    area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    objects = Objects(image, corners, labels, np.zeros(len(labels), bool), area).rows(kept)
    return read_files(files, objects, validation, root=images), class_names


def _annotation_files(folder: Path, image_set: str | Path | None) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} of annotations")
    if image_set is None:
        files = sorted(file for file in files_below(folder) if file.suffix.lower() == ".xml")
        if not files:
            raise ValueError(f"{folder} holds no XML file")
        return files
    if not Path(image_set).is_file():
        raise ValueError(f"there is no image set {image_set}")
    lines = [line.strip() for line in read_text(Path(image_set)).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"the image set {image_set} is empty")
    return [_annotation_file(folder, line) for line in lines]


def _annotation_file(folder: Path, line: str) -> Path:
    """Return the file that a line of an image set names.

    The name stands alone, or before a -1, 0 or 1, as in the sets of single classes.
    """
    candidates = [folder / f"{name}{suffix}" for name in (line, line.split()[0]) for suffix in (".xml", ".XML")]
    return next((file for file in candidates if file.is_file()), folder / f"{line.split()[0]}.xml")


_Content = tuple[Path, tuple[int, int], list[str], list[list[float]]]
_ByName = Mapping[str, Sequence[Path]]  # all images of a name, with or without suffix


def _parse(path: Path, twin: Path, images: Path, by_name: _ByName, validation: Validation) -> _Content | None:
    """Return the image's file and size, (-1, -1) if it is not stated, and each object's class and corners."""
    try:
        return _content(path, twin, images, by_name)
    except ValueError as error:
        validation.refuse(FAULTY_FILES, str(error))
        return None


def _content(path: Path, twin: Path, images: Path, by_name: _ByName) -> _Content:
    try:
        root = _root(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"there is no annotation file {path}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be opened: {error.strerror}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two for its encoding
        remedy = "save it as UTF-8, or let its first line name its encoding, as <?xml version='1.0' encoding='gbk'?>"
        raise ValueError(f"{path} is not valid XML: {error}; if its letters are the reason, {remedy}") from None
    file_name = (root.findtext("filename") or "").strip()
    if not file_name:
        raise ValueError(f"{path} does not name its image: it has no filename")
    try:
        height, width = (int(float(root.findtext(f"size/{side}") or -1)) for side in ("height", "width"))
        names, boxes = [], []
        for place, entry in enumerate(root.iter("object")):
            name, corners = entry.findtext("name"), [entry.findtext(f"bndbox/{side}") for side in _SIDES]
            if not name or not name.strip() or None in corners:
                raise ValueError(f"object {place} has no name or no bndbox with {', '.join(_SIDES)}")
            names.append(tidy_name(name))
            boxes.append([float(str(corner)) for corner in corners])
    except (OverflowError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        image = _image(file_name, twin, images, by_name)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    stated = 0 < min(height, width) <= max(height, width) < 2**31
    return image, (height, width) if stated else UNKNOWN_SIZE, names, boxes


def _root(content: bytes) -> ElementTree.Element:
    """Return the root of an XML file in any encoding that it declares; the parser itself knows no multi-byte ones."""
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError):
        declared = _ENCODING.match(content)
        if declared is None:
            raise
        return ElementTree.fromstring(content.decode(declared[1].decode("ascii")))


def _image(file_name: str, twin: Path, images: Path, by_name: _ByName) -> Path:
    """Return the image of an annotation file. Labelling tools omit the suffix, or keep a folder or an earlier name.

    `twin` is the path, without suffix, of an image whose place among the images is that of the file among the
    annotations.
    """
    short = PureWindowsPath(file_name)  # which parts at both kinds of slashes
    for folder in (twin.parent, images):
        for candidate in (place_in(folder, file_name), folder / short.name):
            if candidate.is_file():
                return candidate
    found = [by_name.get(name, ()) for name in (short.name, short.stem, twin.name)]
    near = [[file for file in files if file.parent == twin.parent] for files in found]
    anywhere = next(filter(None, [*near, *found]), [images / short.name])
    if len(anywhere) > 1:
        raise ValueError(f"does not say which image it is for: {', '.join(map(str, anywhere))}")
    return anywhere[0]


def _one_per_image(listed: list[tuple[Path, _Content]], validation: Validation) -> list[tuple[Path, _Content]]:
    """Leave out files whose image has another: the one with the image's name stays, the other kept an earlier name."""
    owners: dict[Path, Path] = {}
    refused = set()
    for path, (image, *_) in sorted(listed, key=lambda entry: entry[0].stem != entry[1][0].stem):
        owner = owners.setdefault(image, path)
        if owner != path and image.is_file():  # a missing one is reported as such
            remedy = "correct the filename in the one that is not its own"
            validation.refuse(SECOND_FILES, f"{path} names the image of {owner}, {image}", remedy)
            refused.add(path)
    return [(path, content) for path, content in listed if path not in refused]


def _limits(content: _Content) -> tuple[int, int]:
    """Return the size of an image to clip its boxes to; an unknown size clips nothing."""
    image, size, *_ = content
    unlimited = np.iinfo(np.int32).max
    return size if size != UNKNOWN_SIZE else upright_size(image) or (unlimited, unlimited)


def _known(name: str, class_names: Sequence[str], path: Path, row: int, validation: Validation) -> bool:
    if name not in class_names:
        validation.refuse(UNKNOWN_CLASSES, f"{path}: object {row} is a {name!r}, which is not among class_names")
    return name in class_names
