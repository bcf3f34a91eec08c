"""Reads and writes TFRecord files of `tf.train.Example`s in the layout of the TensorFlow Object Detection API."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_encoding
from PIL import Image

from tfdetr_keras.data.border import OnError
from tfdetr_keras.data.files import read_text
from tfdetr_keras.data.record import Record
from tfdetr_keras.data.tensors import from_dataset

LABEL_MAP = "label_map.pbtxt"
_SIDES = ("ymin", "xmin", "ymax", "xmax")
_TEXT = r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
_NESTED = r"\{[^{}]*\}"  # e.g. keypoints
_ITEM = re.compile(rf"item\s*:?\s*\{{((?:[^{{}}\"']|{_TEXT}|{_NESTED})*)\}}")
_ID = re.compile(r"\bid\s*:\s*(\d+)")
_NAMES = [re.compile(rf"\b{key}\s*:\s*{_TEXT}") for key in ("display_name", "name")]  # the first is for people


def write_tfrecord(
    dataset: tf.data.Dataset, folder: str | Path, class_names: Sequence[str], name: str = "set", shards: int = 1
) -> int:
    """Writes a dataset of records as TFRecord files with a label map, so that `load_tfrecord` gives it back.

    Images are stored as PNG, that is, without loss. Records go to the files in turn, one by one. A file has its name
    only once it is whole.

    Args:
        dataset: of records, see `tfdetr_keras.data.record`; `masks` are not written.
        folder: to write to; made if it does not exist.
        class_names: name of each label.
        name: of the files: `name-00000-of-00002.tfrecord`.
        shards: number of files.

    Returns:
        The number of records.

    Raises:
        ValueError: fewer than one shard, a label without a name, or a folder that holds the same set in another number
            of files or another label map: both would be read.
    """
    if shards < 1:
        raise ValueError(f"shards must be at least 1, not {shards}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}-{shard:05d}-of-{shards:05d}.tfrecord" for shard in range(shards)]
    label_map = "".join(
        f'item {{\n  id: {number}\n  name: "{text_encoding.CEscape(text, as_utf8=True)}"\n}}\n'
        for number, text in enumerate(class_names, 1)
    )
    numbered = re.compile(rf"{re.escape(name)}-\d{{5}}-of-\d{{5}}\.tfrecord")
    for other in sorted(folder.iterdir()):
        if numbered.fullmatch(other.name) and other not in files:
            raise ValueError(f"there is already {other} of another number of files: remove it or choose another name")
        if other.name == LABEL_MAP and read_text(other) != label_map:
            raise ValueError(f"{other} has other classes: choose another folder")
    parts = [file.with_name(file.name + ".part") for file in files]
    count = 0
    with ExitStack() as stack:
        writers = [stack.enter_context(tf.io.TFRecordWriter(str(part))) for part in parts]
        for record in dataset.as_numpy_iterator():
            writers[count % shards].write(_example(record, class_names).SerializeToString())
            count += 1
    for part, file in zip(parts, files, strict=True):
        part.rename(file)
    (folder / LABEL_MAP).write_text(label_map, encoding="utf-8")
    return count


def load_tfrecord(
    pattern: str | Path | Sequence[str | Path],
    class_names: Sequence[str] | None = None,
    label_map: str | Path | None = None,
    on_error: OnError = "raise",
) -> tuple[tf.data.Dataset, list[str]]:
    """Reads a detection set from TFRecord files in the layout of the TensorFlow Object Detection API.

    Examples have `image/encoded`, `image/object/bbox/{xmin, xmax, ymin, ymax}` relative to the image, and
    `image/object/class/label`, which begins at 1; `image/source_id` is the image id where it is a number. Where
    `image/object/is_crowd` and `image/object/area` have a value per object, they are used.

    Args:
        pattern: the files, "*" and "?" allowed, or a list of them; they are read one record from each in turn.
        class_names: name of class 1, 2, …; by default those of the label map.
        label_map: a `.pbtxt` of the API; by default the one beside the files. Its ids need not be contiguous: labels
            are numbered in their order. A `display_name` goes before a `name`.
        on_error: "raise" an error for what cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names.

    Raises:
        ValueError: no file or only empty ones, no or a malformed label map; while iterating, unless skipped: as
            `from_dataset`.
        tf.errors.OpError: while iterating, for a damaged file, or one of other things than such examples.
    """
    patterns = [pattern] if isinstance(pattern, (str, Path)) else list(pattern)
    found = {file for one in patterns for file in tf.io.gfile.glob(str(one))}
    files = sorted(file for file in found if not file.endswith((".part", ".pbtxt")) and not tf.io.gfile.isdir(file))
    if not files:
        raise ValueError(f"there is no file {', '.join(map(str, patterns))}")
    if not any(tf.io.gfile.stat(file).length for file in files):
        raise ValueError(f"the set is empty: {', '.join(map(str, patterns))} holds no record")
    if class_names is None:
        ids = _read_label_map(_label_map_beside(files[0]) if label_map is None else Path(label_map))
    else:
        ids = dict(enumerate(class_names, 1))
    numbers = tf.constant(sorted(ids), tf.int64)

    def parse(example: tf.Tensor) -> dict[str, tf.Tensor]:
        return tf.io.parse_single_example(example, _features())

    def boxes(parsed: dict[str, tf.Tensor]) -> tf.Tensor:
        sides = [parsed[f"image/object/bbox/{side}"] for side in _SIDES]
        counts = tf.stack([tf.size(side) for side in sides])
        # Where the sides differ in number, a box with one too many, for `from_dataset` to refuse.
        return tf.cond(
            tf.reduce_all(counts == counts[0]), lambda: tf.stack(sides, axis=-1), lambda: tf.zeros((1, len(sides) + 1))
        )

    def labels(parsed: dict[str, tf.Tensor]) -> tf.Tensor:
        matches = parsed["image/object/class/label"][:, None] == numbers
        return tf.where(tf.reduce_any(matches, axis=1), tf.argmax(matches, axis=1), -1)

    def column(key: str, default: Any) -> Any:
        def values(parsed: dict[str, tf.Tensor]) -> tf.Tensor:
            found, wanted = parsed[key], tf.size(parsed["image/object/class/label"])
            return tf.cond(tf.size(found) == wanted, lambda: found, lambda: default(parsed))

        return values

    def pixel_areas(parsed: dict[str, tf.Tensor]) -> tf.Tensor:
        # −1: not known, left to `from_dataset`, which knows the image's size.
        return -tf.ones_like(parsed["image/object/class/label"], tf.float32)

    examples = tf.data.TFRecordDataset(files[:1]) if len(files) == 1 else _interleaved(files)
    numbered = examples.map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).enumerate()
    fields = {
        "image": lambda element: element[1]["image/encoded"],
        "boxes": lambda element: boxes(element[1]),
        "labels": lambda element: labels(element[1]),
        "image_id": lambda element: _image_id(element[1]["image/source_id"], element[0]),
        "iscrowd": lambda element: column(
            "image/object/is_crowd", lambda parsed: tf.zeros_like(parsed["image/object/class/label"])
        )(element[1]),
        "area": lambda element: column("image/object/area", pixel_areas)(element[1]),
    }
    return from_dataset(
        numbered, fields, [ids[number] for number in sorted(ids)], "yxyx", relative=True, on_error=on_error
    )


def _features() -> dict[str, Any]:
    whole, real = tf.io.RaggedFeature(tf.int64), tf.io.RaggedFeature(tf.float32)
    return {
        "image/encoded": tf.io.FixedLenFeature((), tf.string, ""),
        "image/source_id": tf.io.FixedLenFeature((), tf.string, ""),
        "image/object/class/label": whole,
        "image/object/is_crowd": whole,
        "image/object/area": real,
        **{f"image/object/bbox/{side}": real for side in _SIDES},
    }


def _interleaved(files: list[str]) -> tf.data.Dataset:
    """One record of each file in turn, which undoes `write_tfrecord`'s dealing out."""
    return tf.data.Dataset.from_tensor_slices(files).interleave(
        tf.data.TFRecordDataset, cycle_length=len(files), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )


def _image_id(source_id: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    is_number = tf.strings.regex_full_match(source_id, r"-?\d{1,18}")
    return tf.strings.to_number(tf.where(is_number, source_id, tf.strings.as_string(place)), tf.int64)


def _label_map_beside(file: str) -> Path:
    found = sorted(Path(file).parent.glob("*.pbtxt"))
    if len(found) != 1:
        raise ValueError(
            f"{Path(file).parent} holds {len(found)} label maps (*.pbtxt), not one: give label_map or class_names"
        )
    return found[0]


def _read_label_map(file: Path) -> dict[int, str]:
    if not file.is_file():
        raise ValueError(f"there is no label map {file}")
    names: dict[int, str] = {}
    text = _COMMENT.sub("", read_text(file))
    if _ITEM.sub("", text).strip():
        raise ValueError(f"{file} is not a label map: it has more than items {{ id: … name: … }}")
    for item, *_ in _ITEM.findall(text):
        number = _ID.search(re.sub(f"{_TEXT}|{_NESTED}", "", item))
        name = next((found for pattern in _NAMES if (found := pattern.search(item))), None)
        if number is None or name is None or int(number[1]) < 1 or int(number[1]) in names:
            raise ValueError(f"{file}: an item needs an id from 1 on that no other has, and a name: item {{{item}}}")
        names[int(number[1])] = text_encoding.CUnescape(name[1][1:-1]).decode("utf-8", "backslashreplace")
    if not names:
        raise ValueError(f"{file} is not a label map: it has no item {{ id: … name: … }}")
    return names


def _example(record: Record, class_names: Sequence[str]) -> tf.train.Example:
    image = record["image"]
    height, width = image.shape[:2]
    labels = record["labels"]
    if len(labels) and labels.max() >= len(class_names):
        raise ValueError(f"image {record['image_id']} has the label {labels.max()}, which class_names does not name")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    relative = record["boxes"] / np.array([width, height, width, height], np.float32)
    values: dict[str, Any] = {
        "image/encoded": [buffer.getvalue()],
        "image/format": [b"png"],
        "image/height": [height],
        "image/width": [width],
        "image/source_id": [str(record["image_id"]).encode()],
        "image/filename": [f"{record['image_id']}.png".encode()],
        "image/object/class/label": (labels + 1).tolist(),
        "image/object/class/text": [class_names[label].encode() for label in labels],
        "image/object/is_crowd": record["iscrowd"].astype(int).tolist(),
        "image/object/area": record["area"].tolist(),
        **{
            f"image/object/bbox/{side}": relative[:, place].tolist()
            for side, place in zip(_SIDES, (1, 0, 3, 2), strict=True)
        },
    }
    kinds = {
        bytes: lambda v: tf.train.Feature(bytes_list=tf.train.BytesList(value=v)),
        int: lambda v: tf.train.Feature(int64_list=tf.train.Int64List(value=v)),
        float: lambda v: tf.train.Feature(float_list=tf.train.FloatList(value=v)),
    }
    features = {key: kinds[type(value[0])](value) if value else tf.train.Feature() for key, value in values.items()}
    return tf.train.Example(features=tf.train.Features(feature=features))
