"""Records from a list of image files and a table of their objects: the common part of the file readers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.images import TURNED, decode_image
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import READABLE, RECORD_SPEC, Reader, Record, with_static_shapes
from tfdetr_keras.data.validation import Validation

UNREADABLE = "unreadable images"
SKIP = 'with on_error="skip" (--on-error skip) such images are left out and counted'
MISSING = "missing images"
UNKNOWN_SIZE = (-1, -1)
FAULTY_MASKS = "segmentations that cannot be read"
_IMAGE_ID = re.compile(r"[0-9]{1,18}")  # fits into int64


@dataclass(frozen=True)
class ImageFiles:
    """Image files, one row each.

    Attributes:
        paths: of the files.
        image_ids: `(images,)` int, all different.
        sizes: `(images, 2)` int, the height and width that the annotations state; (-1, -1) where they do not.
    """

    paths: Sequence[Path]
    image_ids: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Objects:
    """Annotated objects, one row each, in any order.

    Attributes:
        image: `(objects,)` int, the row of the object's image in `ImageFiles`.
        boxes: `(objects, 4)` float32, xyxy, pixels, or relative to the image.
        labels: `(objects,)` int.
        iscrowd: `(objects,)` bool.
        area: `(objects,)` float32, pixels², or relative like the boxes.
        segmentations: of each object; None where masks are not wanted.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    area: np.ndarray
    segmentations: Sequence[Any] | None = None

    def rows(self, kept: np.ndarray) -> Objects:
        """Return some of the rows, chosen by an index or a mask."""
        columns = {key: value[kept] for key, value in vars(self).items() if key != "segmentations"}
        if self.segmentations is not None:
            rows = np.arange(len(self.labels))[kept]
            columns["segmentations"] = [self.segmentations[row] for row in rows.tolist()]
        return Objects(**columns)


def read_files(
    files: ImageFiles,
    objects: Objects,
    validation: Validation,
    relative: bool = False,
    rasterise: Callable[[Any, int, int], np.ndarray] | None = None,
    root: Path | None = None,
) -> tf.data.Dataset:
    """Make the dataset of records: one per file, in the order of the list, its objects in the order of the table.

    Only names and boxes are held in memory, a hundred bytes an image and thirty an object; images are read and decoded
    while the dataset is iterated, in parallel.

    Args:
        files: the images.
        objects: what is in them, admitted by the validation.
        validation: decides what happens to an image that is missing or cannot be read.
        relative: whether boxes and areas are relative to their image.
        rasterise: (segmentation, height, width) -> `(height, width)` bool; makes the records' masks. If it raises a
            ValueError, the mask cannot be made: it is an error or stays empty.
        root: the folder of the set; an image's name is its path from there. By default, and for files elsewhere, the
            name includes the last folder.

    Returns:
        A dataset of records. An image that cannot be read is an error while iterating that names the file, or left out.

    Raises:
        ValueError: no images; where these are errors, a missing image, or boxes of which none is inside its image.
    """
    present = np.array([os.path.isfile(path) for path in files.paths], bool)
    for place in np.flatnonzero(~present).tolist():
        remedy = f"{(~present).sum()} of {len(present)} image files are missing: is the folder right?"
        validation.refuse(
            MISSING, f"the file of image {files.image_ids[place]}, {files.paths[place]}, does not exist", remedy
        )
    if not present.any():
        raise ValueError("the set is empty: it has no image that could be read")
    validation.refuse_total_loss()
    objects = objects.rows(np.argsort(objects.image, kind="stable"))
    bounds = np.searchsorted(objects.image, np.arange(len(present) + 1))
    entries = {
        "path": tf.constant([os.fsencode(path) for path, found in zip(files.paths, present, strict=True) if found]),
        "image_id": files.image_ids.astype(np.int64)[present],
        "size": files.sizes.astype(np.int32)[present],
        "name": tf.constant([_name(path, root) for path, found in zip(files.paths, present, strict=True) if found]),
        "start": bounds[:-1][present],
        "stop": bounds[1:][present],
    }
    columns = {
        key: tf.constant(getattr(objects, key), RECORD_SPEC[key].dtype)
        for key in ("boxes", "labels", "iscrowd", "area")
    }

    annotated = len(objects.labels) > 0

    def decode(path: bytes, size: np.ndarray) -> tuple[np.ndarray, np.bool_]:
        def notice(kind: str, what: str) -> None:
            if annotated or kind != TURNED:  # without annotations an image is turned upright, and that is all
                validation.notice(kind, f"{_printable(path)} {what}")

        try:
            content = Path(os.fsdecode(path)).read_bytes()
            return decode_image(content, None if size[0] < 0 else tuple(size.tolist()), notice), np.True_
        except OSError as error:
            validation.refuse(UNREADABLE, f"{_printable(path)} cannot be opened: {error.strerror}", SKIP)
        except ValueError as error:
            validation.refuse(UNREADABLE, f"{_printable(path)} {error}", SKIP)
        return np.zeros((1, 1, 3), np.uint8), np.False_

    def masks(path: bytes, start: np.ndarray, stop: np.ndarray, shape: np.ndarray, readable: np.ndarray) -> np.ndarray:
        segmentations = (objects.segmentations or ())[int(start) : int(stop)]
        found = np.zeros((len(segmentations), *shape[:2]), bool)
        if rasterise is None or not readable:
            return found
        for row, segmentation in enumerate(segmentations):
            try:
                found[row] = rasterise(segmentation, *shape[:2].tolist())
            except ValueError as error:
                validation.refuse(FAULTY_MASKS, f"{_printable(path)}, object {row} {error}")
        return found

    @tf.autograph.experimental.do_not_convert
    def read(entry: dict[str, tf.Tensor]) -> Record:
        record = {key: column[entry["start"] : entry["stop"]] for key, column in columns.items()}
        image, readable = numpy_call(decode, [entry["path"], entry["size"]], [tf.uint8, tf.bool])
        record |= {"image": image, "image_id": entry["image_id"], "orig_size": tf.shape(image)[:2]}
        if relative:
            height, width = tf.unstack(tf.cast(tf.ensure_shape(record["orig_size"], (2,)), tf.float32))
            record["boxes"] *= tf.stack([width, height, width, height])
            record["area"] *= height * width
        if rasterise is not None:
            inputs = [entry["path"], entry["start"], entry["stop"], tf.shape(image), readable]
            record["masks"] = numpy_call(masks, inputs, tf.bool)
        return with_static_shapes(record) | {READABLE: tf.ensure_shape(readable, ())}

    @tf.autograph.experimental.do_not_convert
    def outline(entry: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        rows = [columns[key][entry["start"] : entry["stop"]] for key in ("boxes", "labels", "iscrowd")]
        content = tf.strings.join([tf.io.serialize_tensor(column) for column in rows])
        return {
            "name": entry["name"],
            "image_id": entry["image_id"],
            "objects": tf.math.count_nonzero(~rows[2]),
            "content": tf.strings.to_hash_bucket_fast(content, tf.int64.max),
        }

    image_ids, stored = entries["image_id"], entries["path"]

    def file_of(image_id: int) -> str | None:
        places = np.flatnonzero(image_ids == image_id)
        return _printable(stored.numpy()[places[0]]) if len(places) else None

    return Reader(
        tf.data.Dataset.from_tensor_slices(entries),
        read,
        validation,
        entries_are_small=True,
        file_of=file_of,
        outline_of=outline,
    ).dataset()


def _name(path: Path, root: Path | None) -> bytes:
    """Return the name of an image's file that stays the same when the whole set moves."""
    inside = root is not None and path.is_relative_to(root)
    return os.fsencode((path.relative_to(root) if inside and root else Path(*path.parts[-2:])).as_posix())


def ids_of_names(names: Sequence[str]) -> np.ndarray:
    """Return image ids for data without ids: the numbers in the file names if all are numbers, else their places."""
    if all(_IMAGE_ID.fullmatch(name) for name in names) and len({int(name) for name in names}) == len(names):
        return np.array([int(name) for name in names], np.int64)
    return np.arange(len(names))


def read_text(path: Path) -> str:
    """Return the content of a text file, without the byte order mark that Windows' editors write.

    Raises:
        ValueError: not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def place_in(folder: Path, name: str) -> Path:
    """Return the path of a name in a folder; the name may have been written on Windows."""
    path = folder / name
    return path if "\\" not in name or os.path.exists(path) else folder / name.replace("\\", "/")


def _printable(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
