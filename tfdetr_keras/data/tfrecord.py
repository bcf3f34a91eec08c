"""Reader and writer of TFRecord files of `tf.train.Example`s in the layout of the TensorFlow Object Detection API."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_encoding
from PIL import Image

from tfdetr_keras.data.files import read_text
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import Record, name_of
from tfdetr_keras.data.tensors import records_of
from tfdetr_keras.data.tfrecord_example import ELEMENT_SPEC, image_id_of, parse_example
from tfdetr_keras.data.validation import OnError, Validation

LABEL_MAP = "label_map.pbtxt"
# Files that are read at the same time. TensorFlow opens twice as many ahead; often no more than 1024 may be open, on
# macOS 256.
OPEN_FILES = 64
BACKGROUND = "background"  # the one name that the API's label maps may have for the id 0
HEAD = 4096  # bytes of a file that tell how it is compressed
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
    """Write a dataset of records as TFRecord files with a label map, so that `load_tfrecord` reads it back.

    Images are stored as PNG, that is, without loss. Records are dealt out to the files one by one, and come back
    in their order from up to 64 files. A file gets its name only once it is complete.

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
    """Read a detection set from TFRecord files in the layout of the TensorFlow Object Detection API.

    Examples have `image/encoded`, `image/object/bbox/{xmin, xmax, ymin, ymax}` relative to the image, and
    `image/object/class/label`, which begins at 1, or else the class names as `image/object/class/text`.
    `image/source_id` is the image id if it is a number; otherwise the id is −1 − the place in the set, which no number
    from 0 on is. `image/height` and `image/width` decide whether the boxes of a photograph belong to its pixels as
    stored or as turned upright; where they are not stated, to the upright ones. If present, `image/object/is_crowd` and
    `image/object/area` have a value per object; an object with `image/object/group_of`, as in Open Images, is a
    crowd, too. Messages name an image by its `image/filename`. Files may be compressed by gzip or zlib.

    Args:
        pattern: the files, "*" and "?" allowed, or a list of them; they are read one record from each in turn, from up
            to 64 at a time: a further one begins where one has ended.
        class_names: name of class 1, 2, …; by default those of the label map.
        label_map: a `.pbtxt` of the API; by default the one beside the files. Its ids need not be contiguous: labels
            are numbered in their order, and an id of 0, the background, is left out. A `display_name` takes precedence
            over a `name`; `image/object/class/text` may be either.
        on_error: "raise" an error for data that cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names.

    Raises:
        ValueError: no file or only empty ones, no or a malformed label map; while iterating, unless skipped: a record
            that is not such an example, whose file and feature are named; as `from_dataset`.
        tf.errors.OpError: while iterating, for a damaged file.
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
    places = {number: place for place, number in enumerate(numbers)}
    by_name: dict[bytes, int] = {}
    for place, both in enumerate(names):
        for name in both:
            by_name.setdefault(name.encode(), place)

    def element(place: tf.Tensor, file: tf.Tensor, row: tf.Tensor, example: tf.Tensor) -> dict[str, tf.Tensor]:
        found = numpy_call(
            lambda place, file, row, example: tuple(parse_example(place, file, row, example, places, by_name).values()),
            [place, file, row, example],
            [spec.dtype for spec in ELEMENT_SPEC.values()],
        )
        pairs = zip(ELEMENT_SPEC.items(), found, strict=True)
        return {key: tf.ensure_shape(value, spec.shape) for (key, spec), value in pairs}

    examples = _examples(files)
    return records_of(
        examples.map(element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True),
        {key: key for key in ELEMENT_SPEC},
        [name[0] for name in names],
        "yxyx",
        relative=True,
        validation=Validation(on_error),
        image_ids=examples.map(image_id_of, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True),
    )


def _matching(patterns: Sequence[str]) -> list[str]:
    """Return the files of a set; a path that exists is one of them, whatever characters it has."""
    found = {
        file
        for pattern in patterns
        for file in ([pattern] if tf.io.gfile.exists(pattern) else tf.io.gfile.glob(pattern))
    }
    return sorted(file for file in found if not file.endswith((".part", ".pbtxt")) and not tf.io.gfile.isdir(file))


def compression_of(file: str) -> str:
    """Return how a TFRecord file is compressed, in TensorFlow's terms: "GZIP", "ZLIB" or "", from its first bytes.

    A file that is not compressed begins with the length of a record, which may look like the mark of a compressed one;
    so the bytes must also decompress.
    """
    with tf.io.gfile.GFile(file, "rb") as opened:
        head = opened.read(HEAD)
    for name, mark, window in (("GZIP", b"\x1f\x8b\x08", 31), ("ZLIB", b"\x78", 15)):
        if head.startswith(mark):
            try:
                zlib.decompressobj(window).decompress(head, HEAD)
            except zlib.error:
                continue
            return name
    return ""


def _examples(files: list[str]) -> tf.data.Dataset:
    """Return (place, file, number in its file, example) of all records.

    One record of each file in turn, which undoes `write_tfrecord`'s dealing out.
    """

    def of_file(file: tf.Tensor, compression: tf.Tensor) -> tf.data.Dataset:
        examples = tf.data.TFRecordDataset(file, compression_type=compression)
        return examples.enumerate().map(lambda row, example: (file, row, example))

    sources = tf.data.Dataset.from_tensor_slices((files, [compression_of(file) for file in files]))
    examples = sources.interleave(
        of_file,
        cycle_length=min(len(files), OPEN_FILES),
        num_parallel_calls=tf.data.AUTOTUNE if len(files) > 1 else None,
        deterministic=True,
    )
    return examples.enumerate().map(lambda place, parts: (place, *parts))


def _label_map_beside(file: str) -> Path:
    found = sorted(Path(file).parent.glob("*.pbtxt"))
    if len(found) != 1:
        raise ValueError(
            f"{Path(file).parent} holds {len(found)} label maps (*.pbtxt), not one: give label_map or class_names"
        )
    return found[0]


def _read_label_map(file: Path) -> dict[int, tuple[str, ...]]:
    """Return id -> the names of its class, the one for people first."""
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
