"""Records from any `tf.data.Dataset` whose elements hold an image and its boxes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.areas import NOT_BELIEVED, not_believed
from tfdetr_keras.data.box_format import BoxFormat, check_box_format, to_xyxy
from tfdetr_keras.data.class_names import note_renamed, tidy_name, tidy_names
from tfdetr_keras.data.files import SKIP, UNREADABLE
from tfdetr_keras.data.image_levels import Notice
from tfdetr_keras.data.images import decode_image
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import READABLE, RECORD_SPEC, Reader, Record, with_static_shapes
from tfdetr_keras.data.validation import MANY, OnError, Validation

FAULTY_RECORDS = "records whose fields do not fit together"
REQUIRED_FIELDS = ("image", "boxes", "labels")
OPTIONAL_FIELDS = ("image_id", "file_name", "size", "iscrowd", "area")
MOST_FILES = 4096  # names of files that are kept for messages: of the records that were read last

Fields = Mapping[str, str | Callable[[Any], tf.Tensor]]


def from_dataset(
    dataset: tf.data.Dataset,
    fields: Fields,
    class_names: Sequence[str],
    box_format: BoxFormat,
    relative: bool,
    on_error: OnError = "raise",
) -> tuple[tf.data.Dataset, list[str]]:
    """Make records from a dataset of your own.

    Args:
        dataset: of single images, not batched, in the same order each time: a fault is counted by its place.
        fields: where a record's parts are found in an element: `{"image": …, "boxes": …, "labels": …}`, optionally also
            `"image_id"`, `"file_name"`, `"size"`, `"iscrowd"` and `"area"`. A place is a name, "outer/inner" for nested
            dicts, or a function of the element. Images are uint8 pixels (height, width, 1, 3 or 4 channels) or the
            bytes of an image file; labels are whole numbers from 0 on or names out of `class_names`, image ids whole
            numbers. Messages name an image by its file's name; "" where it is not known. The size is the (height,
            width) that an image file's annotations are for, which decides whether they belong to the pixels as stored
            or as turned upright; if it is not known, (0, 0), they belong to the upright ones. An area below 0 or not
            finite counts as unknown; one that an object in its box cannot have, such as 0, is replaced by the box's and
            counted as noticed.
        class_names: name of each label.
        box_format: "xyxy", "xywh", "cxcywh" or "yxyx".
        relative: whether boxes are relative to the image (0 .. 1) rather than in pixels.
        on_error: "raise" an error for data that cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names. Without a field for it, `image_id` is
        the place in the dataset; `area` is that of the box.

    Raises:
        TypeError: not a dataset.
        ValueError: a place that the elements do not have, fields of another type, unknown fields or box formats. While
            iterating, unless skipped: an image that cannot be read or is of another size, boxes and labels that do not
            fit together, a label that is not a class, a non-finite or inverted box. At the end of a pass: a set without
            a single usable object.
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"dataset must be a tf.data.Dataset, not {type(dataset).__name__}")
    check_box_format(box_format)
    unknown = set(fields) - {*REQUIRED_FIELDS, *OPTIONAL_FIELDS}
    missing = set(REQUIRED_FIELDS) - set(fields)
    if unknown or missing:
        raise ValueError(f"fields must name {REQUIRED_FIELDS} and may name {OPTIONAL_FIELDS}, not {sorted(fields)}")
    return records_of(dataset, fields, class_names, box_format, relative, Validation(on_error))


def records_of(
    dataset: tf.data.Dataset,
    fields: Fields,
    class_names: Sequence[str],
    box_format: BoxFormat,
    relative: bool,
    validation: Validation,
    image_ids: tf.data.Dataset | None = None,
) -> tuple[tf.data.Dataset, list[str]]:
    """Make records as `from_dataset` does, for a reader that has checked the arguments.

    Args:
        dataset: see `from_dataset`; so are the arguments that follow.
        fields: may also have `"fault"`, a text that says what is wrong with an element as a whole; "" if nothing is.
        class_names: name of each label.
        box_format: see `from_dataset`.
        relative: see `from_dataset`.
        validation: decides what happens to faulty data.
        image_ids: of all records, if they are cheap to read.
    """
    if dataset.cardinality() == 0:
        raise ValueError("the set is empty: the dataset has no elements")
    files, raw_names = _LatestFiles(), list(class_names)
    names = tidy_names(raw_names)
    note_renamed(raw_names, names, "class_names", validation.tally)

    @tf.autograph.experimental.do_not_convert
    def read(entry: dict[str, Any]) -> Record:
        found = {key: _of_kind(_dense(part_of(entry["element"], field), key), key) for key, field in fields.items()}
        image_id = tf.cast(found.get("image_id", entry["place"]), tf.int64)
        name = _name(entry["place"], found.get("image_id"), found.get("file_name"))
        image, readable = _pixels(found["image"], found.get("size"), found.get("fault", ""), name, validation)
        size = tf.shape(image)[:2]
        labels = found["labels"]
        tensors = [name, image_id, found.get("file_name", ""), size, readable, found["boxes"], labels]
        tensors += [tf.cast(found["iscrowd"], tf.bool)] if "iscrowd" in found else []
        tensors += [tf.cast(found["area"], tf.float32)] if "area" in found else []

        def admit(
            name: bytes,
            image_id: np.int64,
            file_name: bytes,
            size: np.ndarray,
            readable: Any,
            boxes: np.ndarray,
            labels: Any,
            *more: Any,
        ) -> Any:
            files.note(int(image_id), file_name)
            rest = list(more)
            columns = {"labels": labels}
            columns |= {key: rest.pop(0) for key in ("iscrowd", "area") if key in found}
            sound = bool(readable)
            if sound and (complaint := _misfit(size, boxes, columns)):
                validation.refuse(FAULTY_RECORDS, f"{name.decode()} {complaint}")
                sound = False
            if not sound:
                boxes, columns = boxes[:0].reshape(0, 4), {key: column[:0] for key, column in columns.items()}
            corners = to_xyxy(boxes, box_format, size if relative else None)
            admitted = _admitted(validation, name.decode(), size, corners, columns, names)
            validation.refuse_total_loss(at_least=MANY)
            return *admitted, np.bool_(sound)

        dtypes = [RECORD_SPEC[key].dtype for key in ("boxes", "labels", "iscrowd", "area")] + [tf.bool]
        boxes, labels, iscrowd, area, sound = numpy_call(admit, tensors, dtypes)
        readable = readable & sound
        record = {"image": image, "image_id": image_id, "orig_size": size, "boxes": boxes, "labels": labels}
        record |= {"iscrowd": iscrowd, "area": area}
        return with_static_shapes(record) | {READABLE: tf.ensure_shape(readable, ())}

    entries = dataset.enumerate().map(lambda place, element: {"place": place, "element": element})
    reader = Reader(entries, read, validation, False, files.file_of, boxes_come_last=True, image_ids=image_ids)
    return reader.dataset(), names


class _LatestFiles:
    """The files of the images that were read last, by image id; only the records name them, and these are not kept."""

    def __init__(self) -> None:
        self._files: dict[int, str] = {}
        self._lock = threading.Lock()

    def note(self, image_id: int, file_name: bytes) -> None:
        """Keep a name, if there is one; forget the oldest if there are too many."""
        if not file_name:
            return
        with self._lock:
            self._files[image_id] = file_name.decode("utf-8", "backslashreplace")
            if len(self._files) > MOST_FILES:
                del self._files[next(iter(self._files))]

    def file_of(self, image_id: int) -> str | None:
        """Return the file of an image; None if it is not known, or no longer."""
        with self._lock:
            return self._files.get(image_id)


def part_of(element: Any, place: str | Callable[[Any], tf.Tensor]) -> Any:
    """Return the part of an element that a field names; a name with a slash may itself be a key."""
    if callable(place):
        return place(element)
    outer, _, inner = place.partition("/")
    if isinstance(element, Mapping) and place in element:
        return element[place]
    if isinstance(element, Mapping) and outer in element and inner:
        return part_of(element[outer], inner)
    found = sorted(element) if isinstance(element, Mapping) else type(element).__name__
    raise ValueError(f"elements have no {place!r}, only {found}")


def _dense(field: Any, key: str) -> tf.Tensor:
    if isinstance(field, tf.SparseTensor):
        return tf.sparse.to_dense(field)
    if isinstance(field, tf.RaggedTensor):
        return field.to_tensor()
    try:
        return tf.convert_to_tensor(field)
    except (TypeError, ValueError):
        inner = f" of {sorted(field)}, whose parts are named 'outer/inner'" if isinstance(field, Mapping) else ""
        raise ValueError(f"the field {key!r} must be a tensor, not a {type(field).__name__}{inner}") from None


def _of_kind(field: tf.Tensor, key: str) -> tf.Tensor:
    """Return the field if its type is allowed for its key; raise a ValueError otherwise."""
    allowed, wanted = {
        "image": (field.dtype in (tf.uint8, tf.string), "uint8 levels 0 .. 255 or the bytes of a file"),
        "boxes": (field.dtype.is_floating or field.dtype.is_integer, "numbers"),
        "labels": (field.dtype.is_integer or field.dtype == tf.string, "whole numbers or names"),
        "image_id": (field.dtype.is_integer, "whole numbers"),
        "file_name": (field.dtype == tf.string, "texts"),
        "fault": (field.dtype == tf.string, "texts"),
        "size": (field.dtype.is_integer, "whole numbers"),
        "iscrowd": (field.dtype.is_bool or field.dtype.is_integer, "true or false"),
        "area": (field.dtype.is_floating or field.dtype.is_integer, "numbers"),
    }[key]
    if not allowed:
        raise ValueError(f"the field {key!r} must be {wanted}, not {field.dtype.name}")
    return field


def _name(place: tf.Tensor, image_id: tf.Tensor | None, file_name: tf.Tensor | None) -> tf.Tensor:
    """Return the name of a record for messages: its place, since image ids may repeat, and its file if it is known."""
    image = tf.strings.join(["image ", tf.strings.as_string(place if image_id is None else image_id)])
    record = tf.strings.join(["record ", tf.strings.as_string(place)])
    named = image if image_id is None else tf.strings.join([record, " (", image, ")"])
    if file_name is None:
        return named
    within = image if image_id is None else tf.strings.join([record, ", ", image])
    return tf.where(file_name == "", named, tf.strings.join([file_name, " (", within, ")"]))


def _pixels(
    image: tf.Tensor, size: tf.Tensor | None, fault: tf.Tensor | str, name: tf.Tensor, validation: Validation
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the RGB pixels of a tensor of pixels or of a file's bytes, and whether they could be read."""
    if image.dtype == tf.string:
        if image.shape.rank not in (None, 0):
            raise ValueError(f"the elements must be single images, not batches of shape {tuple(image.shape)}")
        size = tf.zeros(2, tf.int64) if size is None else tf.ensure_shape(size, (2,))
        return _converted(_decoded, [image, size], name, validation, fault)
    if size is not None:
        raise ValueError(
            "the field 'size' is for image files, to turn them upright, but the images are pixels: omit it"
        )
    image = image[..., None] if image.shape.rank == 2 else image
    if image.shape.rank not in (None, 3) or image.shape[-1] not in (None, 1, 3, 4):
        raise ValueError(f"images must be single, (height, width, 1, 3 or 4 channels), not {tuple(image.shape)}")
    if image.shape[-1] is None:
        return _converted(_rgb, [image], name, validation)
    return tf.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3], tf.constant(True)


def _converted(
    convert: Callable[..., np.ndarray],
    inputs: Sequence[tf.Tensor],
    name: tf.Tensor,
    validation: Validation,
    fault: tf.Tensor | str = "",
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the image that a function of arrays and a notice makes, and whether it could.

    A ValueError, or the `fault`, says why not.
    """

    def call(name: bytes, fault: bytes, *arrays: Any) -> tuple[np.ndarray, np.bool_]:
        if fault:
            validation.refuse(FAULTY_RECORDS, f"{name.decode()} {fault.decode()}")
            return np.zeros((1, 1, 3), np.uint8), np.False_
        try:
            return convert(*arrays, lambda kind, what: validation.notice(kind, f"{name.decode()} {what}")), np.True_
        except ValueError as error:
            validation.refuse(UNREADABLE, f"{name.decode()} {error}", SKIP)
            return np.zeros((1, 1, 3), np.uint8), np.False_

    return numpy_call(
        call, [name, tf.constant(fault) if isinstance(fault, str) else fault, *inputs], [tf.uint8, tf.bool]
    )


def _decoded(content: bytes, size: np.ndarray, notice: Notice) -> np.ndarray:
    return decode_image(content, tuple(size.tolist()) if min(size) > 0 else None, notice)


def _rgb(pixels: np.ndarray, notice: Notice) -> np.ndarray:
    image = pixels[..., None] if pixels.ndim == 2 else pixels
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise ValueError(f"has the shape {pixels.shape}, not (height, width, 1, 3 or 4 channels)")
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]


def _misfit(size: np.ndarray, boxes: np.ndarray, columns: Mapping[str, np.ndarray]) -> str:
    """Return what is wrong with the shapes of a record's fields; "" if nothing is."""
    if min(size) < 1:
        return f"is {size[0]} x {size[1]} (height x width): it has no pixels"
    if boxes.shape[:1] != (0,) and (boxes.ndim != 2 or boxes.shape[1] != 4):
        return f"has boxes of the shape {boxes.shape}, not (objects, 4)"
    for key, column in columns.items():
        if column.shape != boxes.shape[:1]:
            return f"has boxes of the shape {boxes.shape} but {key} of the shape {column.shape}"
    return ""


def _admitted(
    validation: Validation,
    name: str,
    size: np.ndarray,
    boxes: np.ndarray,
    columns: Mapping[str, np.ndarray],
    class_names: Sequence[str],
) -> tuple[np.ndarray, ...]:
    """Return the columns of the usable objects: boxes, labels, iscrowd, area."""
    labels = columns["labels"]
    described = [f"{name}, object {row}" for row in range(len(labels))]
    if labels.dtype.kind in "SO":
        names = [bytes(name).decode("utf-8", "backslashreplace") for name in labels]
        described = [f"{text} ({name!r})" for text, name in zip(described, names, strict=True)]
        numbers = {name: number for number, name in enumerate(class_names)}
        labels = np.array([numbers.get(tidy_name(name), -1) for name in names], np.int64)
    corners, kept = validation.admit_boxes(boxes, labels, size, len(class_names), described.__getitem__)
    box_area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    iscrowd = columns.get("iscrowd", np.zeros(len(kept), bool))
    area = columns.get("area", box_area)
    doubtful = not_believed(np.asarray(area, np.float64), np.asarray(boxes, np.float64))
    for row in np.flatnonzero(doubtful & np.isfinite(area) & (area >= 0) & kept).tolist():
        validation.tally.add(
            NOT_BELIEVED, f"{described[row]} has the area {area[row]:g}; taken for {box_area[row]:g} pixels²"
        )
    known = np.isfinite(area) & (area >= 0) & ~doubtful
    area = np.where(known, area, box_area).astype(np.float32)
    return corners[kept], labels[kept].astype(np.int32), iscrowd[kept], area[kept]
