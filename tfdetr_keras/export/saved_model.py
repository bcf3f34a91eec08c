"""TensorFlow's SavedModel: for `tf.saved_model.load`, TensorFlow Serving, and everything that reads them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import tensorflow as tf

from tfdetr_keras.data.sizes import Resize
from tfdetr_keras.export.exportable import IMAGES, PIXELS, canvas_of, checked_place, exportable, write_signatures
from tfdetr_keras.export.serving_graph import ServingGraph
from tfdetr_keras.models import DETR

FILES = "files"


def saved_model(
    model: DETR,
    path: str | Path,
    size: tuple[int, int] = (800, 1333),
    pad_to: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a SavedModel that takes raw images; to run it needs TensorFlow alone.

    Its two signatures are `serving_default`, of `images` `(batch, height, width, 3)` uint8, and `files`, of `files`
    `(batch,)` strings, the contents of image files; both give `scores`, `labels` and `boxes`, see `ServingGraph`. The
    class names stand in `assets/class_names.txt`.

    Args:
        model: the detector.
        path: the folder to write, which appears complete or not at all.
        size: (shortest_edge, longest_edge) that images are resized to, pixels; as in training.
        pad_to: (height, width) of one canvas for all images, pixels.
        overwrite: whether to replace a SavedModel that is there.

    Returns:
        The folder.

    Raises:
        ValueError: no place to write, or Keras runs on another backend.
    """
    path = checked_place(path, overwrite)
    if path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").is_file():
        raise ValueError(f"{path} holds other files than a SavedModel: name a new or an empty folder")
    canvas = canvas_of(pad_to)
    served = exportable(model)
    graph = ServingGraph(served, Resize(*size, strict=canvas is not None), canvas)
    files = tf.TensorSpec((None,), tf.string, "files")
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".tfdetr-") as scratch:
        written = Path(scratch) / "new"
        write_signatures(written, served, {PIXELS: (graph.of_pixels, IMAGES), FILES: (graph.of_files, files)})
        names = "".join(f"{name}\n" for name in served.id2label.values())
        (written / "assets").mkdir(exist_ok=True)
        (written / "assets" / "class_names.txt").write_text(names, encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
        written.rename(path)
    return path
