"""Records from any `tf.data.Dataset` whose elements hold an image and its boxes, TensorFlow Datasets' included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.border import Border, OnError
from tfdetr_keras.data.box_format import BoxFormat, check_box_format, to_xyxy
from tfdetr_keras.data.files import UNREADABLE
from tfdetr_keras.data.host import host_function
from tfdetr_keras.data.images import decode_image
from tfdetr_keras.data.record import READABLE, RECORD_SPEC, Reader, Record, with_static_shapes

FAULTY_RECORDS = "records whose fields do not fit together"
REQUIRED_FIELDS = ("image", "boxes", "labels")
OPTIONAL_FIELDS = ("image_id", "iscrowd", "area")
# TensorFlow Datasets' names for object detection.
TFDS_FIELDS = {"image": "image", "boxes": "objects/bbox", "labels": "objects/label"}
TFDS_OPTIONAL_FIELDS = {"image_id": "image/id", "iscrowd": "objects/is_crowd", "area": "objects/area"}

Fields = Mapping[str, str | Callable[[Any], tf.Tensor]]


def from_dataset(
    dataset: tf.data.Dataset,
    fields: Fields,
    class_names: Sequence[str],
    box_format: BoxFormat,
    relative: bool,
    on_error: OnError = "raise",
) -> tuple[tf.data.Dataset, list[str]]:
    """Makes records of a dataset of your own.

    Args:
        dataset: of single images, not batched.
        fields: where a record's parts are found in an element: `{"image": …, "boxes": …, "labels": …}`, optionally also
            `"image_id"`, `"iscrowd"` and `"area"`. A place is a name, "outer/inner" for nested dicts, or a function of
            the element. Images are uint8 pixels (height, width, 1, 3 or 4 channels) or the bytes of an image file;
            labels are whole numbers from 0 on or names out of `class_names`, image ids whole numbers; an area below 0
            is one that is not known.
        class_names: name of each label.
        box_format: "xyxy", "xywh", "cxcywh" or "yxyx".
        relative: whether boxes are relative to the image (0 .. 1) rather than in pixels.
        on_error: "raise" an error for what cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names. Without a field for it, `image_id` is
        the place in the dataset; `area` is that of the box.

    Raises:
        TypeError: not a dataset.
        ValueError: a place that the elements do not have, fields of another type, unknown fields or box formats; while
            iterating, unless skipped: an image that cannot be read, boxes and labels that do not fit together, a label
            that is no class, a non-finite or inverted box.
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"dataset must be a tf.data.Dataset, not {type(dataset).__name__}")
    check_box_format(box_format)
    unknown = set(fields) - {*REQUIRED_FIELDS, *OPTIONAL_FIELDS}
    missing = set(REQUIRED_FIELDS) - set(fields)
    if unknown or missing:
        raise ValueError(f"fields must name {REQUIRED_FIELDS} and may name {OPTIONAL_FIELDS}, not {sorted(fields)}")
    if dataset.cardinality() == 0:
        raise ValueError("the set is empty: the dataset has no elements")
    border, names = Border(on_error), list(class_names)

    @tf.autograph.experimental.do_not_convert
    def read(entry: dict[str, Any]) -> Record:
        found = {key: _of_kind(_dense(_field(entry["element"], field)), key) for key, field in fields.items()}
        image_id = tf.cast(found.get("image_id", entry["place"]), tf.int64)
        image, readable = _pixels(found["image"], image_id, border)
        size = tf.shape(image)[:2]
        labels = found["labels"]
        tensors = [image_id, size, readable, found["boxes"], labels]
        tensors += [tf.cast(found["iscrowd"], tf.bool)] if "iscrowd" in found else []
        tensors += [tf.cast(found["area"], tf.float32)] if "area" in found else []

        def admit(image_id: Any, size: np.ndarray, readable: Any, boxes: np.ndarray, labels: Any, *more: Any) -> Any:
            rest = list(more)
            columns = {"labels": labels}
            columns |= {key: rest.pop(0) for key in ("iscrowd", "area") if key in found}
            sound = bool(readable)
            if sound and (complaint := _misfit(size, boxes, columns)):
                border.refuse(FAULTY_RECORDS, f"image {image_id} {complaint}")
                sound = False
            if not sound:
                boxes, columns = boxes[:0].reshape(0, 4), {key: column[:0] for key, column in columns.items()}
            corners = to_xyxy(boxes, box_format, size if relative else None)
            return *_admitted(border, int(image_id), size, corners, columns, names), np.bool_(sound)

        dtypes = [RECORD_SPEC[key].dtype for key in ("boxes", "labels", "iscrowd", "area")] + [tf.bool]
        boxes, labels, iscrowd, area, sound = host_function(admit, tensors, dtypes)
        readable = readable & sound
        record = {"image": image, "image_id": image_id, "orig_size": size, "boxes": boxes, "labels": labels}
        record |= {"iscrowd": iscrowd, "area": area}
        return with_static_shapes(record) | {READABLE: tf.ensure_shape(readable, ())}

    entries = dataset.enumerate().map(lambda place, element: {"place": place, "element": element})
    return Reader(entries, read, border, entries_are_small=False).dataset(), names


def load_tfds(
    source: Any,
    split: str = "train",
    class_names: Sequence[str] | None = None,
    on_error: OnError = "raise",
) -> tuple[tf.data.Dataset, list[str]]:
    """Reads a detection set of TensorFlow Datasets.

    Args:
        source: a builder whose data is prepared, or a dataset (not batched) of
            `{"image": …, "objects": {"bbox": …, "label": …}}` with boxes (ymin, xmin, ymax, xmax) relative to the
            image; `"image/id"`, if it is a number, and the objects' `"is_crowd"` and `"area"` are used where they are
            there. A builder's images are decoded here, in parallel.
        split: of the builder, also in parts ("train[:10%]").
        class_names: name of each label; by default the builder's. A dataset does not know them.
        on_error: "raise" an error for what cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names.

    Raises:
        TypeError: neither builder nor dataset.
        ValueError: a builder without data or without that split, elements without `objects`, no class names; while
            iterating, unless skipped: as `from_dataset`.
    """
    if isinstance(source, tf.data.Dataset):
        dataset = source
    elif not hasattr(source, "as_dataset"):
        raise TypeError(f"source must be a builder (tfds.builder(…)) or a tf.data.Dataset, not {source!r:.100}")
    else:
        dataset, class_names = _built(source, split, class_names)
    spec = dataset.element_spec
    if not isinstance(spec, Mapping) or not isinstance(spec.get("objects"), Mapping):
        found = sorted(spec) if isinstance(spec, Mapping) else spec
        raise ValueError(f"this is no detection set: its elements have no 'objects', they are {found}")
    if class_names is None:
        raise ValueError("a dataset does not know its class names: give class_names, or the builder instead")
    optional = {key: place for key, place in TFDS_OPTIONAL_FIELDS.items() if _has_number(spec, place)}
    return from_dataset(dataset, TFDS_FIELDS | optional, class_names, "yxyx", relative=True, on_error=on_error)


def _built(builder: Any, split: str, class_names: Sequence[str] | None) -> tuple[tf.data.Dataset, Sequence[str] | None]:
    import tensorflow_datasets as tfds

    features, splits = builder.info.features, builder.info.splits or {}
    if class_names is None and "objects" in features:
        objects = getattr(features["objects"], "feature", {})
        class_names = getattr(objects["label"], "names", None) if "label" in objects else None
    decoders = {"image": tfds.decode.SkipDecoding()} if "image" in features else None
    try:
        return builder.as_dataset(split=split, decoders=decoders, shuffle_files=False), class_names
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"the builder {builder.info.name} has no split {split!r}, only {sorted(splits)}: "
            "is its data prepared (download_and_prepare)?"
        ) from error


def _has_number(spec: Any, place: str) -> bool:
    try:
        return _field(spec, place).dtype != tf.string
    except ValueError:
        return False


def _field(element: Any, place: str | Callable[[Any], tf.Tensor]) -> Any:
    """The part of an element that a field names; a name with a slash may itself be a key."""
    if callable(place):
        return place(element)
    outer, _, inner = place.partition("/")
    if isinstance(element, Mapping) and place in element:
        return element[place]
    if isinstance(element, Mapping) and outer in element and inner:
        return _field(element[outer], inner)
    found = sorted(element) if isinstance(element, Mapping) else type(element).__name__
    raise ValueError(f"elements have no {place!r}, only {found}")


def _dense(field: Any) -> tf.Tensor:
    if isinstance(field, tf.SparseTensor):
        return tf.sparse.to_dense(field)
    return field.to_tensor() if isinstance(field, tf.RaggedTensor) else tf.convert_to_tensor(field)


def _of_kind(field: tf.Tensor, key: str) -> tf.Tensor:
    """The field, if it has a type that its key can have."""
    allowed, wanted = {
        "image": (field.dtype in (tf.uint8, tf.string), "uint8 levels 0 .. 255 or the bytes of a file"),
        "boxes": (field.dtype.is_floating or field.dtype.is_integer, "numbers"),
        "labels": (field.dtype.is_integer or field.dtype == tf.string, "whole numbers or names"),
        "image_id": (field.dtype.is_integer, "whole numbers"),
        "iscrowd": (field.dtype.is_bool or field.dtype.is_integer, "true or false"),
        "area": (field.dtype.is_floating or field.dtype.is_integer, "numbers"),
    }[key]
    if not allowed:
        raise ValueError(f"the field {key!r} must be {wanted}, not {field.dtype.name}")
    return field


def _pixels(image: tf.Tensor, image_id: tf.Tensor, border: Border) -> tuple[tf.Tensor, tf.Tensor]:
    """RGB pixels of a tensor of pixels or of a file's bytes, and whether they could be read."""
    if image.dtype == tf.string:
        if image.shape.rank not in (None, 0):
            raise ValueError(f"the elements must be single images, not batches of shape {tuple(image.shape)}")

        def decode(content: bytes, image_id: np.ndarray) -> tuple[np.ndarray, np.bool_]:
            try:
                return decode_image(content), np.True_
            except ValueError as error:
                border.refuse(UNREADABLE, f"image {image_id} {error}")
                return np.zeros((1, 1, 3), np.uint8), np.False_

        return host_function(decode, [image, image_id], [tf.uint8, tf.bool])
    if image.shape.rank == 2:
        image = image[..., None]
    if image.shape.rank not in (None, 3) or image.shape[-1] not in (None, 1, 3, 4):
        raise ValueError(f"images must be single, (height, width, 1, 3 or 4 channels), not {tuple(image.shape)}")
    image = tf.ensure_shape(image, (None, None, image.shape[-1]))
    image = tf.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
    return image, tf.constant(True)


def _misfit(size: np.ndarray, boxes: np.ndarray, columns: Mapping[str, np.ndarray]) -> str:
    """What is wrong with the shapes of a record's fields; "" if nothing is."""
    if min(size) < 1:
        return f"is {size[0]} x {size[1]} (height x width): it has no pixels"
    if boxes.shape[:1] != (0,) and (boxes.ndim != 2 or boxes.shape[1] != 4):
        return f"has boxes of the shape {boxes.shape}, not (objects, 4)"
    for key, column in columns.items():
        if column.shape != boxes.shape[:1]:
            return f"has boxes of the shape {boxes.shape} but {key} of the shape {column.shape}"
    return ""


def _admitted(
    border: Border,
    image_id: int,
    size: np.ndarray,
    boxes: np.ndarray,
    columns: Mapping[str, np.ndarray],
    class_names: Sequence[str],
) -> tuple[np.ndarray, ...]:
    """The columns of the objects that can be used: boxes, labels, iscrowd, area."""
    labels = columns["labels"]
    described = [f"image {image_id}, object {row}" for row in range(len(labels))]
    if labels.dtype.kind in "SO":
        names = [bytes(name).decode("utf-8", "backslashreplace") for name in labels]
        described = [f"{text} ({name!r})" for text, name in zip(described, names, strict=True)]
        numbers = {name: number for number, name in enumerate(class_names)}
        labels = np.array([numbers.get(name, -1) for name in names], np.int64)
    corners, kept = border.admit_boxes(boxes, labels, size, len(class_names), described.__getitem__)
    box_area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    iscrowd = columns.get("iscrowd", np.zeros(len(kept), bool))
    area = columns.get("area", box_area)
    area = np.where(area < 0, box_area, area).astype(np.float32)
    return corners[kept], labels[kept].astype(np.int32), iscrowd[kept], area[kept]
