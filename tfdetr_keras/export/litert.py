"""Export to LiteRT, formerly TensorFlow Lite: for phones, boards, and everything that reads `.tflite` files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import tensorflow as tf

from tfdetr_keras.backend.atomic import whole_file
from tfdetr_keras.export.exportable import IMAGES, PIXELS, file_to_write, serving_graph, write_signatures
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.quantization import mode_of
from tfdetr_keras.preprocessing import Preprocessing, SizeRule, preprocessing_for

Precision = Literal["float32", "float16", "int8"]


def litert(
    model: Detector,
    path: str | Path,
    size: tuple[int, int] | None = None,
    pad_to: tuple[int, int] | None = None,
    precision: Precision = "float32",
    overwrite: bool = False,
    size_rule: SizeRule | None = None,
    preprocessing: Preprocessing | None = None,
) -> Path:
    """Write a `.tflite` file that maps `images` `(batch, height, width, 3)` uint8 to `scores`, `labels` and `boxes`.

    Before it runs, set an image's size on the interpreter with `resize_tensor_input`.

    Args:
        model: the detector.
        path: of the file, `.tflite`; it appears complete or not at all.
        size: of images, instead of the preprocessing's, see `td.Preprocessing`.
        pad_to: (height, width) of the canvas that images are padded to, pixels, instead of the preprocessing's; if
            there is neither, the largest that an image can need, e.g. the square of `longest_edge`.
        precision: "float32"; "float16", weights of half the size; or "int8", weights of a quarter, with activations
            quantised as they come ("dynamic range").
        overwrite: whether to replace a file that is there.
        size_rule: by which images are resized, instead of the preprocessing's.
        preprocessing: how images are prepared; by default the model's own.

    Returns:
        The file.

    Raises:
        ValueError: no place to write, no such precision, a model that is quantised already, or Keras runs on another
            backend.
    """
    if precision not in ("float32", "float16", "int8"):
        raise ValueError(f'precision must be "float32", "float16" or "int8", not {precision!r}')
    if mode := mode_of(model):
        raise ValueError(
            f"this model is quantised by Keras ({mode}), which LiteRT does not support: export the original, with "
            'precision="int8" for weights of a quarter of the size'
        )
    path = file_to_write(path, ".tflite", overwrite)
    chosen = preprocessing_for(model, preprocessing, size, pad_to, size_rule).on_one_canvas()
    graph = serving_graph(model, chosen, portable=True)
    with tempfile.TemporaryDirectory() as scratch:  # of functions alone the converter would forget weights, or names
        write_signatures(Path(scratch), graph.model, {PIXELS: (graph.of_pixels, IMAGES)})
        converter = tf.lite.TFLiteConverter.from_saved_model(scratch, signature_keys=[PIXELS])
        content = _converted(converter, precision)
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return path


def _converted(converter: tf.lite.TFLiteConverter, precision: Precision) -> bytes:
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()
