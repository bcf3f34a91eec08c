"""What exports share: a model whose batch normalisation is folded, a place to write to, signatures."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfdetr_keras.models import DETR

PIXELS = "serving_default"
IMAGES = tf.TensorSpec((None, None, None, 3), tf.uint8, "images")

logger = logging.getLogger(__name__)


def exportable(model: DETR) -> DETR:
    """The model as it is exported: folded, and without the outputs of the earlier decoder layers.

    Raises:
        ValueError: Keras runs on another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"models are exported on TensorFlow, and Keras runs on {keras.backend.backend()} here: save a .keras file, "
            "and export it in a process with KERAS_BACKEND=tensorflow"
        )
    if model.dtype_policy.compute_dtype != "float32":
        logger.info("exporting in float32 what computes in %s", model.dtype_policy.compute_dtype)
    config = dataclasses.replace(model.config, auxiliary_outputs=False)
    twin = DETR(config, model.criterion, name=model.name, dtype="float32")
    twin.set_weights(model.get_weights())
    return twin if config.backbone.batch_norm == "folded" else twin.fold()


def checked_place(path: str | Path, overwrite: bool, suffix: str = "") -> Path:
    """The path to write to.

    Args:
        path: of a file, or a folder.
        overwrite: whether something may be there already.
        suffix: that a file's name must have.

    Raises:
        ValueError: another suffix, no such folder to write into, or something is there.
    """
    path = Path(path)
    if suffix and path.suffix != suffix:
        raise ValueError(f"{path}: the name must end in {suffix}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist")
    if suffix and path.is_dir():
        raise ValueError(f"{path} is a folder; name a file to write")
    if not suffix and path.is_file():
        raise ValueError(f"{path} is a file; name a folder to write")
    if path.exists() and not overwrite and (path.is_file() or any(path.iterdir())):
        raise ValueError(f"{path} exists already: say overwrite, or give another name")
    return path


def write_signatures(
    folder: Path, model: DETR, signatures: Mapping[str, tuple[Callable[..., Any], tf.TensorSpec]]
) -> None:
    """Writes functions of one tensor, that use a model, as a SavedModel's signatures.

    Args:
        folder: to write.
        model: whose weights the functions use.
        signatures: by name, the function and its argument.
    """
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, (function, spec) in signatures.items():
        archive.add_endpoint(name, function, [spec])
    archive.write_out(folder, verbose=False)


def canvas_of(pad_to: Any) -> tuple[int, int] | None:
    """A canvas as a pair of whole numbers.

    Raises:
        ValueError: anything else.
    """
    if pad_to is None:
        return None
    try:
        height, width = (int(side) for side in pad_to)
    except (TypeError, ValueError):
        raise ValueError(f"pad_to must be (height, width) in pixels or None, not {pad_to!r}") from None
    return height, width
