"""The common part of all exports: the graph of a model whose batch normalisation is folded, and its signatures."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfdetr_keras.backend.atomic import check_new_file
from tfdetr_keras.export.serving_graph import ServingGraph
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.quantization import describe_quantization, quantize_as
from tfdetr_keras.preprocessing import Preprocessing

PIXELS = "serving_default"
IMAGES = tf.TensorSpec((None, None, None, 3), tf.uint8, "images")

logger = logging.getLogger(__name__)


def exportable(model: Detector) -> Detector:
    """Return the model ready for export: folded, and without the outputs of the earlier decoder layers.

    Raises:
        ValueError: Keras runs on another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"models are exported on TensorFlow, but Keras runs on {keras.backend.backend()} here: save a .keras file, "
            "and export it in a process with KERAS_BACKEND=tensorflow"
        )
    if model.dtype_policy.compute_dtype != "float32":
        logger.info("exporting in float32 what computes in %s", model.dtype_policy.compute_dtype)
    config = dataclasses.replace(model.config, auxiliary_outputs=False)
    twin = type(model)(config, model.criterion, name=model.name, dtype="float32")
    quantize_as(twin, describe_quantization(model))
    twin.set_weights(model.get_weights())
    return twin if config.folded() == config else twin.fold()


def serving_graph(model: Detector, preprocessing: Preprocessing, portable: bool = False) -> ServingGraph:
    """Return the graph of a model ready for export; see `ServingGraph`.

    Args:
        model: the detector.
        preprocessing: how images are prepared.
        portable: whether TensorFlow's own resize is left out.

    Raises:
        ValueError: a size rule that is not portable; also as `exportable`.
    """
    if portable and preprocessing.rule == "facebook":
        raise ValueError(
            'size_rule="facebook" works in TensorFlow only: use "huggingface", which differs by some pixels'
        )
    return ServingGraph(exportable(model), preprocessing, portable)


def file_to_write(path: str | Path, suffix: str, overwrite: bool) -> Path:
    """Return the path of a file to write.

    Raises:
        ValueError: its name has another ending; also as `check_new_file`.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"{path}: the name must end in {suffix}")
    check_new_file(path, overwrite)
    return path


def write_signatures(
    folder: Path, model: Detector, signatures: Mapping[str, tuple[Callable[..., Any], tf.TensorSpec]]
) -> None:
    """Write functions of one tensor, that use a model, as a SavedModel's signatures.

    Args:
        folder: to write.
        model: the model whose weights the functions use.
        signatures: the function and its argument, by name.
    """
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, (function, spec) in signatures.items():
        archive.add_endpoint(name, function, [spec])
    log = tf.get_logger()
    level = log.level
    log.setLevel(logging.WARNING)  # TensorFlow says where it writes, which is not where the folder will stand
    try:
        archive.write_out(folder, verbose=False)
    finally:
        log.setLevel(level)
