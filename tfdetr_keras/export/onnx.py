"""Export to ONNX: for ONNX Runtime and the other engines that read it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfdetr_keras.backend.atomic import whole_file
from tfdetr_keras.backend.compiler import left_plain
from tfdetr_keras.export.exportable import IMAGES, file_to_write, serving_graph
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.quantization import mode_of
from tfdetr_keras.preprocessing import Preprocessing, SizeRule, preprocessing_for

OPSET = 18


def onnx(
    model: Detector,
    path: str | Path,
    size: tuple[int, int] | None = None,
    pad_to: tuple[int, int] | None = None,
    overwrite: bool = False,
    size_rule: SizeRule | None = None,
    preprocessing: Preprocessing | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Path:
    """Write an ONNX file that maps `images` `(batch, height, width, 3)` uint8 to `scores`, `labels` and `boxes`.

    The class names are stored in the file's metadata, `class_names`, as a JSON list, and their thresholds, where there
    are any, in `thresholds`, as a JSON object: all detections are returned, whatever their score.

    Args:
        model: the detector.
        path: of the file, `.onnx`; it appears complete or not at all.
        size: of images, instead of the preprocessing's, see `td.Preprocessing`.
        pad_to: (height, width) of one canvas for all images, pixels, instead of the preprocessing's.
        overwrite: whether to replace a file that is there.
        size_rule: by which images are resized, instead of the preprocessing's.
        preprocessing: how images are prepared; by default the model's own.
        thresholds: the score that detections of each class should exceed, by its name, to keep with the model.

    Returns:
        The file.

    Raises:
        ValueError: no place to write, tf2onnx is not installed, a model quantised as float8, or Keras runs on another
            backend.
    """
    if importlib.util.find_spec("tf2onnx") is None:
        raise ValueError("to write ONNX files, install tf2onnx: pip install 'tfdetr-keras[onnx]'")
    import tf2onnx

    if mode_of(model) == "float8":
        raise ValueError("this model is quantised (float8), which tf2onnx does not support: export the original")
    path = file_to_write(path, ".onnx", overwrite)
    graph = serving_graph(model, preprocessing_for(model, preprocessing, size, pad_to, size_rule), portable=True)
    function = tf.function(graph.of_pixels, autograph=False)
    with left_plain():
        written, _ = tf2onnx.convert.from_function(function, [IMAGES], opset=OPSET)
    told: dict[str, Any] = {"class_names": list(graph.model.id2label.values())}
    for key, value in (told | ({"thresholds": dict(thresholds)} if thresholds else {})).items():
        entry = written.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    with whole_file(path) as partial:
        partial.write_bytes(written.SerializeToString())
    return path
