"""Running a model over records: detections in pixels, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfdetr_keras.data.checks import readable_errors
from tfdetr_keras.data.pipeline import prepare
from tfdetr_keras.postprocess import post_process


def detect(
    model: keras.Model,
    records: tf.data.Dataset,
    size: tuple[int, int] = (800, 1333),
    batch_size: int = 1,
    pad_to: tuple[int, int] | None = None,
    threshold: float = 0.5,
) -> Iterator[dict[str, Any]]:
    """Detects objects in images.

    Args:
        model: gives `{"logits": (batch, queries, num_classes + 1), last = no object, "pred_boxes": (batch, queries, 4)
            cxcywh relative to the image without padding}` for `prepare`'s inputs.
        records: of images, e.g. from `td.data.load_images`.
        size: (shortest_edge, longest_edge) that images are resized to, pixels.
        batch_size: images a batch; the padding of a batch changes the answers a little, 1 has none.
        pad_to: (height, width) of a fixed canvas, pixels.
        threshold: only detections with a higher score are given.

    Yields:
        Per record, in order, `{"image_id": int, "scores": (n,) float32, "labels": (n,) int64, "boxes": (n, 4) float32
        xyxy in pixels of the image}`.

    Raises:
        ValueError: arguments as for `prepare`; while iterating: an image that cannot be read.
    """
    batches = prepare(records, batch_size, size=size, pad_to=pad_to)
    forward = forward_function(model, batches.element_spec[0])
    with readable_errors():
        for inputs, targets in batches:
            results = post_process(forward(inputs), targets["orig_size"].numpy(), threshold)
            for image_id, result in zip(targets["image_id"].numpy().tolist(), results, strict=True):
                yield {"image_id": image_id, **result}


def forward_function(model: keras.Model, inputs_spec: Mapping[str, tf.TensorSpec]) -> Callable[[Any], Any]:
    """The model in inference mode, for TensorFlow's tensors; on TensorFlow one graph for images of all sizes."""
    if keras.backend.backend() == "tensorflow":
        return tf.function(lambda inputs: model(inputs, training=False), input_signature=[inputs_spec])
    return lambda inputs: model.predict_on_batch({key: value.numpy() for key, value in inputs.items()})
