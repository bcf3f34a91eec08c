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
from tfdetr_keras.data.record import Record, name_of
from tfdetr_keras.data.tensors import from_dataset

LABEL_MAP = "label_map.pbtxt"
# Files that are read at the same time. TensorFlow opens twice as many ahead; often no more than 1024 may be open, on
# macOS 256.
OPEN_FILES = 64
BACKGROUND = "background"  # the one name that the API's label maps may have for the id 0
_SIDES = ("ymin", "xmin", "ymax", "xmax")
_TEXT = r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_TEXT_OR_COMMENT = re.compile(rf"{_TEXT}|#.*")
_NESTED = r"\{[^{}]*\}"  # e.g. keypoints
_ITEM = re.compile(rf"item\s*:?\s*\{{((?:[^{{}}\"']|{_TEXT}|{_NESTED})*)\}}")
_ID = re.compile(r"\bid\s*:\s*(\d+)")
_NAMES = [re.compile(rf"\b{key}\s*:\s*{_TEXT}") for key in ("display_name", "name")]  # the first is for people


def write_tfrecord(
    dataset: tf.data.Dataset, folder: str | Path, class_names: Sequence[str], name: str = "set", shards: int = 1
) -> int:
    """Writes a dataset of records as TFRecord files with a label map, so that `load_tfrecord` gives it back.

    Images are stored as PNG, that is, without loss. Records go to the files in turn, one by one, and come back
    in their order from up to 64 files. A file has its name only once it is whole.

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
            labels = record["labels"]
            if len(labels) and labels.max() >= len(class_names):
                name = name_of(dataset, record["image_id"])
                raise ValueError(f"{name} has the label {labels.max()}, which class_names does not name")
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
    `image/object/class/label`, which begins at 1, or else the class names as `image/object/class/text`.
    `image/source_id` is the image id where it is a number; elsewhere this is −1 − the place in the set, which no number
    from 0 on is. `image/height` and `image/width` tell whether the boxes of a photograph belong to its pixels as stored
    or as turned upright; where they are not stated, to the upright ones. Where `image/object/is_crowd` and
    `image/object/area` have a value per object, they are used. Messages call an image by its `image/filename`.

    Args:
        pattern: the files, "*" and "?" allowed, or a list of them; they are read one record from each in turn, from up
            to 64 at a time: a further one begins where one has ended.
        class_names: name of class 1, 2, …; by default those of the label map.
        label_map: a `.pbtxt` of the API; by default the one beside the files. Its ids need not be contiguous: labels
            are numbered in their order, and one of 0, the background, is left away. A `display_name` goes before a
            `name`; `image/object/class/text` may be either.
        on_error: "raise" an error for what cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names.

    Raises:
        ValueError: no file or only empty ones, no or a malformed label map; while iterating, unless skipped: as
            `from_dataset`.
        tf.errors.OpError: while iterating, for a damaged file, or one of other things than such examples.
    """
    patterns = [str(one) for one in ([pattern] if isinstance(pattern, (str, Path)) else pattern)]
    files = _matching(patterns)
    if not files:
        raise ValueError(f"there is no file {', '.join(patterns)}")
    if not any(tf.io.gfile.stat(file).length for file in files):
        raise ValueError(f"the set is empty: {', '.join(patterns)} holds no record")
    if class_names is None:
        classes = _read_label_map(_label_map_beside(files[0]) if label_map is None else Path(label_map))
    else:
        classes = {number: (name,) for number, name in enumerate(class_names, 1)}
    numbers = sorted(classes)
    names = [classes[number] for number in numbers]
    ids, texts = tf.constant(numbers, tf.int64), tf.constant([[name[0], name[-1]] for name in names])
    examples = tf.data.TFRecordDataset(files) if len(files) == 1 else _interleaved(files)
    elements = examples.enumerate().map(
        lambda place, example: _element(place, example, ids, texts),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    fields = {key: key for key in elements.element_spec}
    return from_dataset(elements, fields, [name[0] for name in names], "yxyx", relative=True, on_error=on_error)


def _matching(patterns: Sequence[str]) -> list[str]:
    """The files of a set; a path that exists is one, whatever characters it has."""
    found = {
        file
        for pattern in patterns
        for file in ([pattern] if tf.io.gfile.exists(pattern) else tf.io.gfile.glob(pattern))
    }
    return sorted(file for file in found if not file.endswith((".part", ".pbtxt")) and not tf.io.gfile.isdir(file))


def _features() -> dict[str, Any]:
    whole, real = tf.io.RaggedFeature(tf.int64), tf.io.RaggedFeature(tf.float32)
    return {
        "image/encoded": tf.io.FixedLenFeature((), tf.string, ""),
        "image/height": tf.io.FixedLenFeature((), tf.int64, 0),
        "image/width": tf.io.FixedLenFeature((), tf.int64, 0),
        "image/source_id": tf.io.FixedLenFeature((), tf.string, ""),
        "image/filename": tf.io.FixedLenFeature((), tf.string, ""),
        "image/object/class/label": whole,
        "image/object/class/text": tf.io.RaggedFeature(tf.string),
        "image/object/is_crowd": whole,
        "image/object/area": real,
        **{f"image/object/bbox/{side}": real for side in _SIDES},
    }


def _element(place: tf.Tensor, example: tf.Tensor, ids: tf.Tensor, texts: tf.Tensor) -> dict[str, tf.Tensor]:
    """The fields of an example, as `from_dataset` takes them."""
    parsed = tf.io.parse_single_example(example, _features())
    sides = [parsed[f"image/object/bbox/{side}"] for side in _SIDES]
    counts = tf.stack([tf.size(side) for side in sides])
    # Where the sides differ in number, a box with one too many, for `from_dataset` to refuse.
    boxes = tf.cond(
        tf.reduce_all(counts == counts[0]), lambda: tf.stack(sides, axis=-1), lambda: tf.zeros((1, len(sides) + 1))
    )
    labels = _labels(parsed["image/object/class/label"], parsed["image/object/class/text"], ids, texts)

    def column(key: str, default: tf.Tensor) -> tf.Tensor:
        return tf.cond(tf.size(parsed[key]) == tf.size(labels), lambda: parsed[key], lambda: default)

    return {
        "image": parsed["image/encoded"],
        "size": tf.stack([parsed["image/height"], parsed["image/width"]]),
        "boxes": boxes,
        "labels": labels,
        "image_id": _image_id(parsed["image/source_id"], place),
        "file_name": parsed["image/filename"],
        "iscrowd": column("image/object/is_crowd", tf.zeros_like(labels)),
        # −1: not known, left to `from_dataset`, which knows the image's size.
        "area": column("image/object/area", -tf.ones_like(labels, tf.float32)),
    }


def _labels(numbers: tf.Tensor, text: tf.Tensor, ids: tf.Tensor, texts: tf.Tensor) -> tf.Tensor:
    """The classes of objects, by number or else by name; −1 for one that does not exist."""
    matches = tf.cond(
        tf.size(numbers) > 0,
        lambda: numbers[:, None] == ids,
        lambda: tf.reduce_any(text[:, None, None] == texts, axis=2),
    )
    return tf.where(tf.reduce_any(matches, axis=1), tf.argmax(matches, axis=1), -1)


def _interleaved(files: list[str]) -> tf.data.Dataset:
    """One record of each file in turn, which undoes `write_tfrecord`'s dealing out."""
    return tf.data.Dataset.from_tensor_slices(files).interleave(
        tf.data.TFRecordDataset,
        cycle_length=min(len(files), OPEN_FILES),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _image_id(source_id: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    is_number = tf.strings.regex_full_match(source_id, r"-?\d{1,18}")
    return tf.strings.to_number(tf.where(is_number, source_id, tf.strings.as_string(-1 - place)), tf.int64)


def _label_map_beside(file: str) -> Path:
    found = sorted(Path(file).parent.glob("*.pbtxt"))
    if len(found) != 1:
        raise ValueError(
            f"{Path(file).parent} holds {len(found)} label maps (*.pbtxt), not one: give label_map or class_names"
        )
    return found[0]


def _read_label_map(file: Path) -> dict[int, tuple[str, ...]]:
    """Id -> the names of its class, the one for people first."""
    if not file.is_file():
        raise ValueError(f"there is no label map {file}")
    classes: dict[int, tuple[str, ...]] = {}
    text = _TEXT_OR_COMMENT.sub(lambda found: found[1] or "", read_text(file))
    if _ITEM.sub("", text).strip():
        raise ValueError(f"{file} is not a label map: it has more than items {{ id: … name: … }}")
    for item, *_ in _ITEM.findall(text):
        number = _ID.search(re.sub(f"{_TEXT}|{_NESTED}", "", item))
        names = tuple(_unquoted(found[1]) for pattern in _NAMES if (found := pattern.search(item)))
        if number is not None and int(number[1]) == 0 and BACKGROUND in names:
            continue
        if number is None or not names or int(number[1]) < 1 or int(number[1]) in classes:
            raise ValueError(f"{file}: an item needs an id from 1 on that no other has, and a name: item {{{item}}}")
        classes[int(number[1])] = names
    if not classes:
        raise ValueError(f"{file} is not a label map: it has no item {{ id: … name: … }} of a class")
    return classes


def _unquoted(text: str) -> str:
    return text_encoding.CUnescape(text[1:-1]).decode("utf-8", "backslashreplace")


def _example(record: Record, class_names: Sequence[str]) -> tf.train.Example:
    image = record["image"]
    height, width = image.shape[:2]
    labels = record["labels"]
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
