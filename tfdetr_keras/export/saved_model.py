"""Export to TensorFlow's SavedModel: for `tf.saved_model.load`, TensorFlow Serving, and everything that reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from tfdetr_keras.backend.atomic import check_new_folder, whole_folder
from tfdetr_keras.data.class_names import tidy_name
from tfdetr_keras.export.exportable import IMAGES, PIXELS, serving_graph, write_signatures
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.preprocessing import Preprocessing, SizeRule, preprocessing_for

FILES = "files"
NAMES = ("assets", "fingerprint.pb", "saved_model.pb", "variables")  # of what such a folder holds


def saved_model(
    model: Detector,
    path: str | Path,
    size: tuple[int, int] | None = None,
    pad_to: tuple[int, int] | None = None,
    overwrite: bool = False,
    size_rule: SizeRule | None = None,
    preprocessing: Preprocessing | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Path:
    """Write a SavedModel that takes raw images and needs only TensorFlow to run.

    Its two signatures are `serving_default`, which takes `images` `(batch, height, width, 3)` uint8, and `files`, which
    takes `files` `(batch,)` strings, the contents of image files. Both return `scores`, `labels` and `boxes`, see
    `ServingGraph`. The class names are in `assets/class_names.txt`, and their thresholds, where there are
    any, in `assets/thresholds.json`: all detections are returned, whatever their score.

    Args:
        model: the detector.
        path: the folder to write, which appears complete or not at all.
        size: of images, instead of the preprocessing's, see `td.Preprocessing`.
        pad_to: (height, width) of one canvas for all images, pixels, instead of the preprocessing's.
        overwrite: whether to replace a SavedModel that is there.
        size_rule: by which images are resized, instead of the preprocessing's.
        preprocessing: how images are prepared; by default the model's own.
        thresholds: the score that detections of each class should exceed, by its name, to keep with the model.

    Returns:
        The folder.

    Raises:
        ValueError: no place to write, or Keras runs on another backend.
    """
    path = Path(path)
    check_new_folder(path, NAMES, overwrite)
    graph = serving_graph(model, preprocessing_for(model, preprocessing, size, pad_to, size_rule))
    files = tf.TensorSpec((None,), tf.string, "files")
    with whole_folder(path) as written:
        write_signatures(written, graph.model, {PIXELS: (graph.of_pixels, IMAGES), FILES: (graph.of_files, files)})
        names = "".join(f"{tidy_name(name)}\n" for name in graph.model.id2label.values())
        (written / "assets").mkdir(exist_ok=True)
        (written / "assets" / "class_names.txt").write_text(names, encoding="utf-8")
        if thresholds:
            (written / "assets" / "thresholds.json").write_text(json.dumps(dict(thresholds), indent=2) + "\n")
        check_new_folder(path, NAMES, overwrite)  # once more: exporting takes a while
    return path
