"""Running a model over records, or over images as people have them: detections in pixels, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdetr_keras.data.checks import readable_errors
from tfdetr_keras.data.image_files import records_of
from tfdetr_keras.data.images import read_pixels
from tfdetr_keras.data.pipeline import prepare
from tfdetr_keras.data.sizes import SizeRule
from tfdetr_keras.detections import Detections
from tfdetr_keras.postprocess import post_process
from tfdetr_keras.workers import number_of_workers


def detect(
    model: keras.Model,
    records: tf.data.Dataset,
    size: tuple[int, int] = (800, 1333),
    batch_size: int = 1,
    pad_to: tuple[int, int] | None = None,
    threshold: float = 0.5,
    size_rule: SizeRule = "huggingface",
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
        size_rule: by which rule images are resized, see `prepare`; "table" for Table Transformer.

    Yields:
        Per record, in order, `{"image_id": int, "scores": (n,) float32, "labels": (n,) int64, "boxes": (n, 4) float32
        xyxy in pixels of the image}`.

    Raises:
        ValueError: arguments as for `prepare`; while iterating: an image that cannot be read.
    """
    batches = prepare(records, batch_size, size=size, pad_to=pad_to, size_rule=size_rule)
    forward = forward_function(model, batches.element_spec[0])
    with readable_errors():
        for inputs, targets in batches:
            results = post_process(forward(inputs), targets["orig_size"].numpy(), threshold)
            for image_id, result in zip(targets["image_id"].numpy().tolist(), results, strict=True):
                yield {"image_id": image_id, **result}


def detect_images(
    model: keras.Model,
    images: Any,
    size: tuple[int, int] = (800, 1333),
    threshold: float = 0.5,
    urls: bool = False,
    attention: bool = False,
    pad_to: tuple[int, int] | None = None,
    size_rule: SizeRule = "huggingface",
) -> Detections | list[Detections]:
    """Detects objects in images of whatever kind; what `DETR.detect` calls.

    For thousands of files use `detect`, which holds one batch of them at a time.

    Args:
        model: as for `detect`, with the class names in `id2label`.
        images: one image or a list of them; each a path, an array `(height, width, 3)` or `(height, width)` uint8, a
            PIL image, or, if allowed, a URL.
        size: (shortest_edge, longest_edge) that images are resized to, pixels; as in training.
        threshold: only detections with a higher score are given.
        urls: whether text that begins with http:// or https:// is fetched.
        attention: whether the decoder's attention is wanted, too; for this the model has to be a `DETR`.
        pad_to: (height, width) of a fixed canvas, pixels; as in training.
        size_rule: by which rule images are resized, see `prepare`; as in training.

    Returns:
        The detections of each image, the surest first; of one image alone if `images` is one.

    Raises:
        ValueError: something is no image, or cannot be read.
    """
    is_one = not isinstance(images, (list, tuple))
    pixels = [read_pixels(image, urls) for image in ([images] if is_one else images)]
    if not pixels:
        return []
    found = (
        _detect_with_attention(model, pixels, size, threshold, pad_to, size_rule)
        if attention
        else detect(model, records_of(pixels), size, pad_to=pad_to, threshold=threshold, size_rule=size_rule)
    )
    results = [_detections(model.id2label, image, result) for image, result in zip(pixels, found, strict=True)]
    return results[0] if is_one else results


def _detections(names: Mapping[int, str], image: np.ndarray, found: Mapping[str, Any]) -> Detections:
    """Sorted and named."""
    order = np.argsort(-found["scores"], kind="stable")
    labels = found["labels"][order]
    named = [names.get(int(label), str(label)) for label in labels]
    attention = found["attention"][order] if "attention" in found else None
    return Detections(found["scores"][order], labels, found["boxes"][order], named, image, attention)


def _detect_with_attention(
    model: Any,
    images: Sequence[np.ndarray],
    size: tuple[int, int],
    threshold: float,
    pad_to: tuple[int, int] | None,
    size_rule: SizeRule,
) -> Iterator[dict[str, Any]]:
    """As `detect`, with `"attention"`: `(n, h, w)`, of the image without its padding."""
    with readable_errors():
        for inputs, targets in prepare(records_of(images), 1, size=size, pad_to=pad_to, size_rule=size_rule):
            stages = model.stages({key: value.numpy() for key, value in inputs.items()}, attention=True)
            [found] = post_process(stages, targets["orig_size"].numpy(), threshold=-1)
            weights = keras.ops.convert_to_numpy(stages[f"decoder.layer{model.config.decoder_layers - 1}.attention"])[0]
            mask = keras.ops.convert_to_numpy(stages["mask"])[0]
            maps = weights.mean(axis=0).reshape(-1, *mask.shape)[:, : mask.any(axis=1).sum(), : mask.any(axis=0).sum()]
            keep = found["scores"] > threshold
            yield {key: value[keep] for key, value in {**found, "attention": maps}.items()}


def forward_function(model: keras.Model, inputs_spec: Mapping[str, tf.TensorSpec]) -> Callable[[Any], Any]:
    """The model in inference mode, for TensorFlow's tensors; on TensorFlow one graph for images of all sizes.

    What is traced is kept with the model: that takes longer than looking at an image.
    """
    kept = model.__dict__.setdefault("_inference_graphs", {})
    if keras.backend.backend() == "tensorflow":
        key = tuple(sorted((name, str(spec)) for name, spec in inputs_spec.items()))
        if key not in kept:
            kept[key] = tf.function(lambda inputs: model(inputs, training=False), input_signature=[inputs_spec])
        return kept[key]
    if number_of_workers() > 1:
        if None not in kept:
            kept[None] = _by_this_worker_alone(model)
        return kept[None]
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
