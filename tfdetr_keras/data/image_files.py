"""Records of images alone, to run a model on: files, folders and pixels, without annotations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.files import UNKNOWN_SIZE, ImageFiles, Objects, read_files
from tfdetr_keras.data.image_formats import IMAGE_SUFFIXES
from tfdetr_keras.data.listing import files_below, images_below
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import OBJECT_KEYS, RECORD_SPEC, Record, with_static_shapes
from tfdetr_keras.data.validation import OnError, Validation
from tfdetr_keras.names.spelling import did_you_mean

MOST_NAMED = 8  # suffixes of other files in a message


def load_images(
    sources: Sequence[str | Path] | str | Path, on_error: OnError = "raise"
) -> tuple[tf.data.Dataset, list[Path]]:
    """Read image files that have no annotations.

    Args:
        sources: files and folders; of a folder all images in it and below, in the order of their names. Hidden images
            and images of unsupported kinds are left out and counted; files that systems leave behind are ignored.
        on_error: "raise" an error for an image that cannot be read, or "skip" it and count it in the dataset's `tally`.

    Returns:
        A dataset of records without objects (see `tfdetr_keras.data.record`), turned upright as viewers show them, and
        the paths: `image_id` is the place in the list.

    Raises:
        ValueError: a source that does not exist, or no image; while iterating, unless skipped: an unreadable image.
    """
    places = [Path(source) for source in ([sources] if isinstance(sources, (str, Path)) else sources)]
    validation = Validation(on_error)
    paths: list[Path] = []
    for place in places:
        if place.is_dir():
            paths += images_below(place, validation)
        elif place.is_file():
            paths.append(place)
        else:
            raise ValueError(f"there is no image or folder {place}{_remedy(place)}")
    if not paths:
        others = [path for place in places for path in files_below(place)]
        suffixes = sorted({path.suffix or path.name for path in others})
        held = f"other files ({', '.join(suffixes[:MOST_NAMED])})" if others else "nothing"
        raise ValueError(
            f"there is no image in {', '.join(map(str, places)) or 'an empty list of files'}, which holds {held}; "
            f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}"
            + "".join(f"; left out: {len(found)} {kind}" for kind, found in validation.tally.left_out().items())
        )
    files = ImageFiles(paths, np.arange(len(paths)), np.tile(UNKNOWN_SIZE, (len(paths), 1)))
    nothing = np.zeros(0, np.int64)
    objects = Objects(nothing, np.zeros((0, 4), np.float32), nothing, nothing.astype(bool), nothing.astype(np.float32))
    return read_files(files, objects, validation), paths


def _remedy(source: Path) -> str:
    """Return what may be wrong with a name that does not exist."""
    if any(character in str(source) for character in "*?["):
        return ": nothing matches the pattern, or it stands in quotes, in which the shell leaves it as it is"
    return did_you_mean(source.name, os.listdir(source.parent)) if source.parent.is_dir() else ""


def records_of(images: Sequence[np.ndarray]) -> tf.data.Dataset:
    """Make records without objects from images `(height, width, 3)` uint8; `image_id` is the place."""

    @tf.autograph.experimental.do_not_convert
    def record(place: tf.Tensor) -> Record:
        return record_of(numpy_call(lambda place: images[int(place)], [place], tf.uint8), place)

    return tf.data.Dataset.range(len(images)).map(record)


def record_of(image: tf.Tensor, image_id: tf.Tensor) -> Record:
    """Make a record without objects from an image `(height, width, 3)` uint8."""
    nothing = {
        key: tf.zeros([side or 0 for side in spec.shape], spec.dtype)
        for key, spec in RECORD_SPEC.items()
        if key in OBJECT_KEYS
    }
    return with_static_shapes(nothing | {"image": image, "image_id": image_id, "orig_size": tf.shape(image)[:2]})
