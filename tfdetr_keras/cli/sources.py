"""A table, for the command line, of which reader reads which kind of data and what options it needs."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import tensorflow as tf

    from tfdetr_keras.data.validation import OnError

DRAWN_IMAGES, DRAWN_SIZE = 256, (96, 128)  # of the kind "shapes"

Loaded = tuple["tf.data.Dataset", list[str]]


class _Kind(NamedTuple):
    """The reader and the options of one kind of data.

    Attributes:
        read: the reader, which loads TensorFlow.
        needs: the options that it requires, and their meaning.
        takes: the options that it accepts.
        files: those of them that name a file.
        folders: those of them that name a folder.
    """

    read: Callable[..., Loaded]
    needs: Mapping[str, str]
    takes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


def load_source(
    data: str,
    images: str | Path | None = None,
    annotations: str | Path | None = None,
    split: str | None = None,
    image_set: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    zero_based: bool = False,
    count: int | None = None,
    drawn_size: tuple[int, int] | None = None,
    drawn_seed: int | None = None,
    masks: bool = False,
    segments: str | Path | None = None,
    category_ids: str | None = None,
    lines: str | None = None,
    on_error: OnError = "raise",
) -> Loaded:
    """Read a detection set of any kind.

    Args:
        data: its kind: "coco", "coco-panoptic", "voc", "yolo", "tfds", "tfrecord" or "shapes" (drawn on the fly).
        images: coco, coco-panoptic, voc: the folder of the images; yolo: the folder of the set.
        annotations: coco, coco-panoptic: the JSON file of the instances or segments; voc: the folder of the XML files;
            tfds: the folder of a prepared builder; tfrecord: the files, "*" and "?" allowed.
        split: yolo, tfds: which part of the set; "train" by default, or all images of a yolo set that names no parts.
        image_set: voc: a text file with the names of the annotation files to read.
        class_names: voc, yolo, tfds, tfrecord, shapes: name of each label; by default those that the set states.
        zero_based: voc: whether corners count from 0.
        count: shapes: number of images.
        drawn_size: shapes: smallest and largest side of the images, pixels.
        drawn_seed: shapes: sets of different seeds share no image.
        masks: coco, shapes: whether records have the objects' masks; coco-panoptic always has them, no other kind does.
        segments: coco-panoptic: the folder of the PNG files.
        category_ids: coco, coco-panoptic: "contiguous" (the default) or "original", see `load_coco`.
        lines: yolo: "auto" (the default), "boxes" or "polygons", see `load_yolo`.
        on_error: "raise" an error for data that cannot be used, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names.

    Raises:
        ValueError: an unknown kind, a missing option, or one that the kind does not use; also as the readers.
    """
    given = check_source(
        data,
        images=images,
        annotations=annotations,
        split=split,
        image_set=image_set,
        class_names=class_names,
        zero_based=zero_based or None,
        count=count,
        drawn_size=drawn_size,
        drawn_seed=drawn_seed,
        masks=masks or None,
        segments=segments,
        category_ids=category_ids,
        lines=lines,
    )
    return KINDS[data].read(**given, on_error=on_error)


def check_source(data: str, on_error: OnError = "raise", **options: Any) -> dict[str, Any]:
    """Check everything about a set that needs neither reading it nor TensorFlow.

    Args:
        data: its kind, see `load_source`.
        on_error: for the data that is read later.
        **options: the other arguments of `load_source`, None for those that are not given.

    Returns:
        The options that are given.

    Raises:
        ValueError: an unknown kind, a missing option, one that the kind does not use, or a missing file or folder.
    """
    if data not in KINDS:
        raise ValueError(f"data must be one of {', '.join(KINDS)}, not {data!r}")
    kind = KINDS[data]
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("masks") and "masks" not in kind.takes:
        having = ", ".join(name for name, other in KINDS.items() if "masks" in other.takes)
        raise ValueError(f"data of the kind {data} has no masks; these kinds have them: {having}")
    if missing := [f"{_option(name)} ({what})" for name, what in kind.needs.items() if name not in given]:
        raise ValueError(f"data of the kind {data} needs {' and '.join(missing)}")
    if unused := [name for name in given if name not in kind.needs and name not in kind.takes]:
        allowed = ", ".join(map(_option, (*kind.needs, *kind.takes)))
        raise ValueError(f"data of the kind {data} does not use {', '.join(map(_option, unused))}, only {allowed}")
    for names, noun, is_there in ((kind.files, "file", Path.is_file), (kind.folders, "folder", Path.is_dir)):
        for name in names:
            if name in given and not is_there(path := Path(given[name])):
                other = f"{path} is no {noun}" if path.exists() else f"there is no {noun} {path}"
                raise ValueError(f"{_option(name)}: {other}")
    return given


def is_there(path: str) -> bool:
    """Return whether a path, or a pattern of the kind tfrecord, exists."""
    if os.path.exists(path):
        return True
    return any(character in path for character in "*?") and bool(glob.glob(path))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def read_class_names(path: str | Path) -> list[str]:
    """Read class names from a text file, one per line in the order of the labels; empty lines at its end do not count.

    Raises:
        ValueError: no such file, one without names, with an empty line, or with a name that appears twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path} of class names")
    from tfdetr_keras.data.files import read_text

    names = [line.strip() for line in read_text(path).rstrip().splitlines()]
    if not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{path} must hold one class name a line, all different, in the order of the labels")
    return names


def _read_coco(**options: Any) -> Loaded:
    from tfdetr_keras.data import load_coco

    return load_coco(**options)


def _read_coco_panoptic(masks: bool = True, **options: Any) -> Loaded:
    from tfdetr_keras.data import load_coco_panoptic

    return load_coco_panoptic(**options)  # which gives masks, whether they were asked for or not


def _read_voc(zero_based: bool = False, **options: Any) -> Loaded:
    from tfdetr_keras.data import load_voc

    return load_voc(one_based=not zero_based, **options)


def _read_yolo(images: str | Path, **options: Any) -> Loaded:
    from tfdetr_keras.data import load_yolo

    return load_yolo(images, **options)


def _read_tfds(annotations: str | Path, **options: Any) -> Loaded:
    if not (Path(annotations) / "dataset_info.json").is_file():
        raise ValueError(
            f"{annotations} is not the folder of a prepared builder, it has no dataset_info.json: name the folder of "
            "the version, e.g. tensorflow_datasets/voc/2007/4.0.0"
        )
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError("to read tfds, install TensorFlow Datasets: pip install tensorflow-datasets") from None
    from tfdetr_keras.data import load_tfds

    return load_tfds(tfds.builder_from_directory(annotations), **options)


def _read_tfrecord(annotations: str | Path, **options: Any) -> Loaded:
    from tfdetr_keras.data import load_tfrecord

    return load_tfrecord(annotations, **options)


def _read_shapes(
    on_error: OnError,  # nothing can be wrong with them
    class_names: Sequence[str] | None = None,
    count: int = DRAWN_IMAGES,
    drawn_size: tuple[int, int] = DRAWN_SIZE,
    drawn_seed: int = 0,
    masks: bool = False,
) -> Loaded:
    from tfdetr_keras.data import load_shapes

    classes = {} if class_names is None else {"classes": class_names}
    try:
        return load_shapes(count, drawn_seed, size=drawn_size, masks=masks, **classes)
    except ValueError as error:
        message = str(error)
        for name, option in (
            ("count", "--count"),
            ("size", "--drawn-size"),
            ("seed", "--drawn-seed"),
            ("classes", "--class-names"),
        ):
            message = re.sub(rf"^{name}(?= must )", option, message)
        raise ValueError(message) from error


WITH_MASKS = ("coco", "shapes")  # where they are wanted; a panoptic set always has them
KINDS = {
    "coco": _Kind(
        _read_coco,
        {"images": "the folder of the images", "annotations": "the JSON file of the instances"},
        ("masks", "category_ids"),
        files=("annotations",),
        folders=("images",),
    ),
    "coco-panoptic": _Kind(
        _read_coco_panoptic,
        {
            "images": "the folder of the images",
            "annotations": "the JSON file of the segments",
            "segments": "the folder of the PNG files",
        },
        ("masks", "category_ids"),
        files=("annotations",),
        folders=("images", "segments"),
    ),
    "voc": _Kind(
        _read_voc,
        {"images": "the folder of the images", "annotations": "the folder of the XML files"},
        ("image_set", "class_names", "zero_based"),
        files=("image_set",),
        folders=("images", "annotations"),
    ),
    "yolo": _Kind(
        _read_yolo, {"images": "the folder of the set"}, ("split", "class_names", "lines"), folders=("images",)
    ),
    "tfds": _Kind(
        _read_tfds,
        {"annotations": "the folder of a prepared builder"},
        ("split", "class_names"),
        folders=("annotations",),
    ),
    "tfrecord": _Kind(_read_tfrecord, {"annotations": "the files, with * and ? as wildcards"}, ("class_names",)),
    "shapes": _Kind(_read_shapes, {}, ("class_names", "count", "drawn_size", "drawn_seed", "masks")),
}
