"""Inference of a model on records, or on images of users: detections or segments, image by image."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdetr_keras.data.checks import readable_errors
from tfdetr_keras.data.image_files import records_of
from tfdetr_keras.data.images import read_pixels
from tfdetr_keras.data.pipeline import prepare
from tfdetr_keras.inference.detections import Detections
from tfdetr_keras.inference.forward_pass import forward_function, with_confident_masks
from tfdetr_keras.inference.postprocess import THRESHOLD, confident, post_process, threshold_by_label
from tfdetr_keras.inference.segments import Segments, fuse_segments, post_process_masks, post_process_panoptic
from tfdetr_keras.matching.classification import Classification, classification_named
from tfdetr_keras.preprocessing import Preprocessing, SizeRule, preprocessing_for

logger = logging.getLogger(__name__)

PANOPTIC_THRESHOLD = 0.85  # facebookresearch/detr, `PostProcessPanoptic`


def detect(
    model: keras.Model,
    records: tf.data.Dataset,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    pad_to: tuple[int, int] | None = None,
    threshold: float | Mapping[str, float] = THRESHOLD,
    size_rule: SizeRule | None = None,
    masks: bool = True,
    preprocessing: Preprocessing | None = None,
) -> Iterator[dict[str, Any]]:
    """Detect objects in images.

    Args:
        model: returns `{"logits": (batch, queries, num_classes + 1), last = no object, "pred_boxes": (batch, queries,
            4) cxcywh relative to the image without padding}` for `prepare`'s inputs; where its `config.classification`
            is "focal", logits without the last one; with a mask head, `pred_masks`, too.
        records: of images, e.g. from `td.data.load_images`.
        size: of images, instead of the preprocessing's, see `td.Preprocessing`.
        batch_size: images a batch; the padding of a batch changes the answers a little, 1 has none.
        pad_to: (height, width) of a fixed canvas, pixels, instead of the preprocessing's.
        threshold: only detections with a higher score are returned; one number for all classes, or one by the name of
            each class of the model's `id2label`, and 0.5 for those that are not named.
        size_rule: by which images are resized, instead of the preprocessing's.
        masks: whether masks are returned, where the model has them: each takes a byte per pixel of the image.
        preprocessing: how images are prepared; by default the model's own.

    Yields:
        Per record, in order, `{"image_id": int, "scores": (n,) float32, "labels": (n,) int64, "boxes": (n, 4) float32
        xyxy in pixels of the image, clipped to it}`, with `"masks": (n, height, width) bool` of the image, if the
        model has masks.

    Raises:
        ValueError: arguments as for `prepare`; a threshold for a class that the model does not have; while
            iterating: an image that cannot be read.
    """
    chosen = preprocessing_for(model, preprocessing, size, pad_to, size_rule)
    batches = prepare(records, batch_size, preprocessing=chosen)
    limits = _limits(model, threshold)
    forward = forward_function(model, batches.element_spec[0], limits if masks else None, folded=True)
    with readable_errors():
        for inputs, targets in batches:
            results = _found(model, forward(inputs), inputs, targets, limits, masks)
            for image_id, result in zip(targets["image_id"].numpy().tolist(), results, strict=True):
                yield {"image_id": image_id, **result}


def detect_images(
    model: keras.Model,
    images: Any,
    size: tuple[int, int] | None = None,
    threshold: float | Mapping[str, float] = THRESHOLD,
    urls: bool = False,
    attention: bool = False,
    pad_to: tuple[int, int] | None = None,
    size_rule: SizeRule | None = None,
    masks: bool = True,
    preprocessing: Preprocessing | None = None,
) -> Detections | list[Detections]:
    """Detect objects in images of any kind; `DETR.detect` calls this function.

    For thousands of files use `detect`, which holds one batch of them at a time.

    Args:
        model: as for `detect`, with the class names in `id2label`.
        images: one image or a list of them; each a path, an array `(height, width, 3)` or `(height, width)` uint8, a
            PIL image, or, if allowed, a URL.
        size: of images, instead of the preprocessing's, see `td.Preprocessing`.
        threshold: only detections with a higher score are returned; one number for all classes, or one by the name of
            each class of the model's `id2label`, and 0.5 for those that are not named.
        urls: whether text that begins with http:// or https:// is fetched.
        attention: whether the decoder's attention is returned, too; the model must then be a `DETR`.
        pad_to: (height, width) of a fixed canvas, pixels, instead of the preprocessing's.
        size_rule: by which images are resized, instead of the preprocessing's.
        masks: see `detect`.
        preprocessing: how images are prepared; by default the model's own.

    Returns:
        The detections of each image, the highest-scoring first; those of the one image if `images` is one.

    Raises:
        ValueError: an item that is not an image, or cannot be read.
    """
    is_one, pixels = _pixels(images, urls)
    chosen = preprocessing_for(model, preprocessing, size, pad_to, size_rule)
    run = _detect_with_attention if attention else detect
    options: dict[str, Any] = {"threshold": threshold, "masks": masks, "preprocessing": chosen}
    found = run(model, records_of(pixels), **options) if pixels else iter(())
    results = [_detections(model.id2label, image, result) for image, result in zip(pixels, found, strict=True)]
    return results[0] if is_one else results


def segment(
    model: keras.Model,
    records: tf.data.Dataset,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    pad_to: tuple[int, int] | None = None,
    threshold: float = PANOPTIC_THRESHOLD,
    things: Sequence[bool] | None = None,
    size_rule: SizeRule | None = None,
    preprocessing: Preprocessing | None = None,
) -> Iterator[dict[str, Any]]:
    """Divide images into segments: things and stuff, each pixel in one of them at most.

    Args:
        model: as for `detect`, with a mask head.
        records: see `detect`.
        size: of images, instead of the preprocessing's, see `td.Preprocessing`.
        batch_size: images a batch.
        pad_to: (height, width) of a fixed canvas, pixels, instead of the preprocessing's.
        threshold: only queries with a higher score become segments.
        things: for each label, whether it is a thing, see `td.data.coco_things`; the others are stuff, and an image has
            one segment for each label of stuff. By default all are things.
        size_rule: by which images are resized, instead of the preprocessing's.
        preprocessing: how images are prepared; by default the model's own.

    Yields:
        Per record, in order, `{"image_id": int, "segmentation": (height, width) int32 of ids, "segments_info": [{"id":
        int, "label_id": int, "was_fused": bool, "score": float}, …]}`; 0 and below are no segment.

    Raises:
        ValueError: arguments as for `prepare`; while iterating: an image that cannot be read, a model without masks, or
            `things` of another number of classes.

    Source: `tfdetr_keras.inference.segments`, `post_process_panoptic` and `fuse_segments`.
    """
    chosen = preprocessing_for(model, preprocessing, size, pad_to, size_rule)
    batches = prepare(records, batch_size, preprocessing=chosen)
    forward = forward_function(model, batches.element_spec[0], threshold, folded=True)
    with readable_errors():
        for inputs, targets in batches:
            sizes, pixel_mask = targets["orig_size"].numpy(), inputs["pixel_mask"].numpy()
            classification = classification_of(model)
            results = panoptic_segments(forward(inputs), sizes, pixel_mask, threshold, things, classification)
            for image_id, result in zip(targets["image_id"].numpy().tolist(), results, strict=True):
                yield {"image_id": image_id, **result}


def segment_images(
    model: keras.Model,
    images: Any,
    size: tuple[int, int] | None = None,
    threshold: float = PANOPTIC_THRESHOLD,
    things: Sequence[bool] | None = None,
    urls: bool = False,
    pad_to: tuple[int, int] | None = None,
    size_rule: SizeRule | None = None,
    preprocessing: Preprocessing | None = None,
) -> Segments | list[Segments]:
    """Divide images of any kind into segments; `DETRForSegmentation.segment` calls this function.

    For thousands of files use `segment`, which holds one batch of them at a time.

    Args:
        model: as for `segment`, with the class names in `id2label`.
        images: see `detect_images`.
        size: of images, instead of the preprocessing's, see `td.Preprocessing`.
        threshold: see `segment`.
        things: see `segment`.
        urls: whether text that begins with http:// or https:// is fetched.
        pad_to: (height, width) of a fixed canvas, pixels, instead of the preprocessing's.
        size_rule: by which images are resized, instead of the preprocessing's.
        preprocessing: how images are prepared; by default the model's own.

    Returns:
        The segments of each image; those of the one image if `images` is one.

    Raises:
        ValueError: as `segment`, or an item that is not an image.
    """
    is_one, pixels = _pixels(images, urls)
    chosen = preprocessing_for(model, preprocessing, size, pad_to, size_rule)
    options: dict[str, Any] = {"threshold": threshold, "things": things, "preprocessing": chosen}
    found = segment(model, records_of(pixels), **options) if pixels else iter(())
    results = [
        Segments(one["segmentation"], one["segments_info"], model.id2label, image)
        for image, one in zip(pixels, found, strict=True)
    ]
    return results[0] if is_one else results


def panoptic_segments(
    outputs: Mapping[str, Any],
    target_sizes: np.ndarray,
    pixel_mask: np.ndarray,
    threshold: float,
    things: Sequence[bool] | None,
    classification: str | Classification = "softmax",
) -> list[dict[str, Any]]:
    """Turn a batch's outputs into what `segment` yields for each image, without its id."""
    results = post_process_panoptic(
        outputs, target_sizes, threshold, pixel_mask=pixel_mask, classification=classification
    )
    if things is None:
        return results
    classes = outputs["logits"].shape[-1] - classification_named(classification).has_no_object
    if len(things) != classes:
        raise ValueError(f"things has {len(things)} values, but the model has {classes} classes")
    stuff = {label for label, is_thing in enumerate(things) if not is_thing}
    return [fuse_segments(one["segmentation"], one["segments_info"], stuff) for one in results]


def classification_of(model: keras.Model) -> Classification:
    """Return how a model's queries are classified; by a softmax if the model does not say."""
    return classification_named(getattr(getattr(model, "config", None), "classification", "softmax"))


def most_answers(model: Any, at_least: int = 0) -> int | None:
    """Return how many answers a model gives for an image, of however many queries the masks were made.

    Args:
        model: the model.
        at_least: what a fixed number is raised to.

    Returns:
        None of a model that does not tell: it makes the masks of all queries.
    """
    limit = classification_of(model).limit
    if limit is not None:
        return max(limit, at_least)
    return getattr(getattr(model, "config", None), "num_predictions", None)


def check_classes(model: keras.Model, outputs: Mapping[str, Any], num_classes: int) -> None:
    """Raise a `ValueError` if a model's outputs are for another number of classes."""
    classification = classification_of(model)
    given, needed = outputs["logits"].shape[-1], classification.num_logits(num_classes)
    if given != needed:
        last = " (the last one for no object)" if classification.has_no_object else ""
        raise ValueError(f"the model gives {given} logits, but {num_classes} class names need {needed}{last}")


def _pixels(images: Any, urls: bool) -> tuple[bool, list[np.ndarray]]:
    """Return whether `images` is one image rather than a list, and the pixels of each."""
    is_one = not isinstance(images, (list, tuple))
    return is_one, [read_pixels(image, urls, logger.warning) for image in ([images] if is_one else images)]


def _found(
    model: keras.Model,
    outputs: Mapping[str, Any],
    inputs: Mapping[str, tf.Tensor],
    targets: Mapping[str, tf.Tensor],
    threshold: float | Sequence[float],
    masks: bool,
) -> list[dict[str, np.ndarray]]:
    """Return the detections of each image of a batch, with boxes clipped to the image."""
    sizes = targets["orig_size"].numpy()
    if masks and "pred_masks" in outputs:
        results = post_process_masks(
            outputs,
            sizes,
            threshold,
            pixel_mask=inputs["pixel_mask"].numpy(),
            classification=classification_of(model),
            top_k=most_answers(model),
        )
    else:
        results = post_process(outputs, sizes, threshold, classification_of(model))
    # Here, not in `post_process`, which gives the boxes that the reference gives and that COCO's AP is measured on.
    return [
        found | {"boxes": np.clip(found["boxes"], 0, np.array([width, height] * 2, np.float32))}
        for found, (height, width) in zip(results, sizes.tolist(), strict=True)
    ]


def _limits(model: keras.Model, threshold: float | Mapping[str, float]) -> float | list[float]:
    """Return a threshold for all, or one for each label."""
    return threshold_by_label(threshold, model.id2label) if isinstance(threshold, Mapping) else threshold


def _detections(names: Mapping[int, str], image: np.ndarray, found: Mapping[str, Any]) -> Detections:
    """Return the detections sorted and named."""
    order = np.argsort(-found["scores"], kind="stable")
    columns = {key: value[order] for key, value in found.items() if key != "image_id"}
    named = [names.get(int(label), str(label)) for label in columns["labels"]]
    return Detections(names=named, image=image, **columns)


def _detect_with_attention(
    model: Any,
    records: tf.data.Dataset,
    threshold: float | Mapping[str, float],
    masks: bool,
    preprocessing: Preprocessing,
) -> Iterator[dict[str, Any]]:
    """Detect as `detect` does, and add `"attention"`: `(n, h, w)`, of the image without its padding."""
    limits = _limits(model, threshold)
    with readable_errors():
        for inputs, targets in prepare(records, 1, preprocessing=preprocessing):
            arrays = {key: value.numpy() for key, value in inputs.items()}
            if model.has_masks:
                outputs = stages = model.stages(arrays, attention=True, masks=False)
                if masks:
                    outputs = with_confident_masks(stages, model.masks_of, limits, classification_of(model))
            else:
                outputs = stages = model.stages(arrays, attention=True)
            [found] = _found(model, outputs, inputs, targets, limits, masks)
            [(_, _, queries)] = confident(stages["logits"], limits, classification_of(model))
            seen = [name for name in stages if name.startswith("decoder.") and name.endswith(".attention")]
            if not seen:
                raise ValueError(
                    f"attention: a {model.title} does not attend to the whole image, so it has no map to return"
                )
            weights = keras.ops.convert_to_numpy(stages[seen[-1]])[0]
            mask = keras.ops.convert_to_numpy(stages["mask"])[0]
            maps = weights.mean(axis=0).reshape(-1, *mask.shape)[:, : mask.any(axis=1).sum(), : mask.any(axis=0).sum()]
            yield found | {"attention": maps[queries]}
