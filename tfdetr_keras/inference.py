"""Running a model over records: detections in pixels, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdetr_keras.data.checks import readable_errors
from tfdetr_keras.data.pipeline import prepare
from tfdetr_keras.postprocess import post_process
from tfdetr_keras.workers import number_of_workers


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
    if number_of_workers() > 1:
        return _by_this_worker_alone(model)
    return lambda inputs: model.predict_on_batch({key: value.numpy() for key, value in inputs.items()})


def _by_this_worker_alone(model: keras.Model) -> Callable[[Any], Any]:
    """On JAX's first device of this process: `predict_on_batch` would take the batches of all workers for one."""
    import jax

    @jax.jit
    def forward(trainable: Any, non_trainable: Any, inputs: Any) -> Any:
        return model.stateless_call(trainable, non_trainable, inputs, training=False)[0]

    def here(variables: Any) -> list[Any]:
        return [variable.value.addressable_data(0) for variable in variables]

    def run(inputs: Mapping[str, tf.Tensor]) -> Any:
        arrays = {key: value.numpy() for key, value in inputs.items()}
        outputs = forward(here(model.trainable_variables), here(model.non_trainable_variables), arrays)
        return keras.tree.map_structure(np.asarray, outputs)

    return run
