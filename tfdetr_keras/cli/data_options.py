"""The options that name a command's data and how it becomes batches."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tfdetr_keras.cli.input_options import add_input_options, given_input
from tfdetr_keras.cli.sources import KINDS, Loaded, check_source, load_source, read_class_names


def add_source_options(command: argparse.ArgumentParser, otherwise: str | None = None) -> None:
    """Add the options that `read_source` reads a data set from.

    Args:
        command: that reads a data set.
        otherwise: what the command does without `--data`, for the help; by default `--data` is required.
    """
    source = command.add_argument_group("the data")
    source.add_argument(
        "--data",
        required=otherwise is None,
        choices=KINDS,
        help=("" if otherwise is None else f"(default: {otherwise}) ")
        + "its kind: coco (images and one JSON file), coco-panoptic (and a PNG file of segments for each), voc "
        "(images and an XML file for each), yolo (images and a text file for each), tfds (TensorFlow Datasets), "
        "tfrecord (of the Object Detection API), or shapes: coloured shapes drawn on the fly, to try things without "
        "any data",
    )
    source.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="coco, coco-panoptic, voc: folder of the images; yolo: folder of the whole set",
    )
    source.add_argument(
        "--annotations",
        metavar="FILE_OR_DIR",
        help="coco, coco-panoptic: the JSON file; voc: folder of the XML files; tfds: folder of the prepared builder's "
        'version; tfrecord: the files, e.g. "set/train-*" (in quotes)',
    )
    source.add_argument("--segments", type=Path, metavar="DIR", help="coco-panoptic: folder of the PNG files")
    source.add_argument(
        "--split",
        metavar="NAME",
        help="yolo, tfds: part of the set (default: train; of a yolo set whose YAML file names none, all of its folder "
        "images)",
    )
    source.add_argument(
        "--image-set", type=Path, metavar="FILE", help="voc: text file that lists the images to read (default: all)"
    )
    source.add_argument(
        "--zero-based",
        action="store_true",
        help="voc: corners count from 0, as many labelling tools write them, not from 1 as in the challenge",
    )
    source.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="text file with one class a line in the order of the labels (default: as the set states them)",
    )
    source.add_argument(
        "--lines",
        choices=("auto", "boxes", "polygons"),
        help="yolo: what the lines of label files are: boxes, with or without a confidence, a track or keypoints after "
        "them, or polygons (default: auto, by their numbers)",
    )
    drawn = command.add_argument_group("drawn shapes")
    drawn.add_argument("--count", type=int, metavar="N", help="shapes: number of images (default: 256)")
    drawn.add_argument(
        "--drawn-size",
        type=int,
        nargs=2,
        metavar=("SMALLEST", "LARGEST"),
        help="shapes: sides of the images, pixels (default: 96 128)",
    )
    drawn.add_argument(
        "--drawn-seed", type=int, metavar="N", help="shapes: sets of different seeds share no image (default: 0)"
    )
    source.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="stop at data that cannot be used, or leave it out and count it (default: raise)",
    )


def add_batch_options(command: argparse.ArgumentParser, batch_size: int, input_default: str) -> None:
    """Add the options that `batch_arguments` passes to `td.data.prepare`.

    Args:
        command: that makes batches.
        batch_size: by default.
        input_default: how images are resized by default, for the help.
    """
    batch = command.add_argument_group("the batches")
    batch.add_argument(
        "--batch-size", type=int, default=batch_size, metavar="N", help=f"images a batch (default: {batch_size})"
    )
    add_input_options(batch, input_default)
    batch.add_argument(
        "--buckets", action="store_true", help="pad to one of seven sizes, images of alike shape together"
    )
    batch.add_argument(
        "--max-boxes",
        type=int,
        metavar="N",
        help="rows of the targets, no image having more objects (default: those of the batch's fullest image)",
    )
    batch.add_argument("--color-jitter", action="store_true", help="in training, also change the colours at random")
    batch.add_argument("--seed", type=int, default=0, metavar="N", help="of the shuffling and the augmentation")


def source_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options as arguments of `load_source`, all of them plain values that a run's folder can keep.

    Raises:
        ValueError: an invalid file of class names.
    """
    names = None if options.class_names is None else read_class_names(options.class_names)
    given = {
        "data": options.data,
        "images": options.images and str(options.images),
        "annotations": options.annotations,
        "split": options.split,
        "image_set": options.image_set and str(options.image_set),
        "class_names": names,
        "zero_based": options.zero_based,
        "count": options.count,
        "drawn_size": options.drawn_size,
        "drawn_seed": options.drawn_seed,
        "segments": options.segments and str(options.segments),
        "lines": options.lines,
        # Of the commands that have a use for them.
        "masks": getattr(options, "masks", None),
        "category_ids": getattr(options, "category_ids", None),
        "on_error": options.on_error,
    }
    return {name: value for name, value in given.items() if value is not None and value is not False}


def check_source_options(options: argparse.Namespace) -> None:
    """Check the options of a data set, as far as this needs no TensorFlow.

    Raises:
        ValueError: as `tfdetr_keras.cli.sources.check_source`.
    """
    check_source(**source_arguments(options))


def read_source(options: argparse.Namespace) -> Loaded:
    """Read the data set that the options name: the records and the class names.

    Raises:
        ValueError: as `tfdetr_keras.cli.sources.load_source`.
    """
    return load_source(**source_arguments(options))


def batch_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options as arguments of `td.data.prepare`.

    Raises:
        ValueError: two canvases at once.
    """
    given = given_input(options)
    if options.buckets and given["pad_to"]:
        raise ValueError("--buckets chooses the canvases itself: leave out --pad-to")
    return {
        "batch_size": options.batch_size,
        **given,
        **({"pad_to": "buckets"} if options.buckets else {}),
        "max_boxes": options.max_boxes,
        "color_jitter": options.color_jitter,
        "seed": options.seed,
    }
