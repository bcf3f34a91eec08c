"""A model's forward pass in inference: compiled once for its backend, and with only the masks that are used.

The mask head is most of a segmentation's work, and only the masks of confident queries are used, some ten of a hundred.
Which queries are confident is known when the detector is done, so detector and mask head are compiled separately, and
between the two the host checks the scores, by the rule of `tfdetr_keras.inference.postprocess`. Features stay on the
device.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfdetr_keras.backbones.folding import FoldedParts
from tfdetr_keras.backend.processes import number_of_processes
from tfdetr_keras.inference.postprocess import confident
from tfdetr_keras.matching.classification import Classification, classification_named
from tfdetr_keras.models.detector import INFERENCE_GRAPHS, Detector

FOLDED_PARTS = "_folded_parts"  # the attribute in which a model keeps it, out of Keras' sight
GROUP = 4  # masks are made of so many queries or a multiple of it: fewer shapes to compile for


def forward_function(
    model: keras.Model,
    inputs_spec: Mapping[str, tf.TensorSpec],
    masks_above: float | Sequence[float] | None,
    folded: bool = False,
) -> Callable[[Mapping[str, tf.Tensor]], dict[str, Any]]:
    """Return the model's inference function for TensorFlow's tensors; on TensorFlow one graph for images of all sizes.

    Traced functions are kept with the model: tracing takes longer than inference on an image.

    Args:
        model: a `DETRForSegmentation`, or any model with outputs of that kind, with masks or without.
        inputs_spec: of `prepare`'s inputs.
        masks_above: the score above which a query's mask is computed, one for all or one for each label;
            None if no masks are needed.
        folded: whether batch normalisation is folded into convolutions, with its current weights: the same outputs up
            to rounding, in less time, but with the weights of these parts in memory twice.

    Returns:
        A function from `prepare`'s inputs to the model's outputs. Those of a `DETRForSegmentation` are of the queries
        with a score above `masks_above`, see `with_confident_masks`, or without masks.
    """
    parts = _folded_parts(model) if folded else None
    if getattr(model, "has_masks", False):
        return _with_masks_apart(model, inputs_spec, masks_above, parts)
    backend, kept = keras.backend.backend(), _kept(model)

    def whole(inputs: Any) -> Any:
        with contextlib.nullcontext() if parts is None else parts.in_place():
            return model(inputs, training=False)

    if backend == "tensorflow":
        key = _key(inputs_spec, parts)
        if key not in kept:
            kept[key] = tf.function(whole, input_signature=[inputs_spec], autograph=False)
        return kept[key]
    if backend == "jax" and (parts is not None or number_of_processes() > 1):
        key = parts is not None
        if key not in kept:
            kept[key] = _jitted(model, whole, parts)
        return lambda inputs: kept[key](_arrays(inputs))
    runner = model if parts is None else _Pass(whole)
    return lambda inputs: runner.predict_on_batch(_arrays(inputs))


def with_confident_masks(
    found: Mapping[str, Any],
    masks_of: Callable[[Any, Any], Any],
    masks_above: float | Sequence[float],
    classification: str | Classification = "softmax",
) -> dict[str, Any]:
    """Return a segmentation's outputs for confident queries only: all that post-processing by the same threshold needs.

    Args:
        found: `logits` and `pred_boxes` of all queries, and `mask_inputs`, from `DETRForSegmentation.stages`.
        masks_of: from `mask_inputs` and the numbers of queries `(batch, n)` int32 to masks, like
            `DETRForSegmentation.masks_of`.
        masks_above: queries with a higher score are confident.
        classification: that of the model.

    Returns:
        `{"logits": (batch, n, num_classes + 1), "pred_boxes": (batch, n, 4), "pred_masks": (batch, n, h, w)}`, each
        image's confident queries in their order; an image with fewer than n is filled up with rows that are certain to
        be no object. n is a multiple of `GROUP`, unless that is more than there are queries.
    """
    logits, boxes = (ops.convert_to_numpy(found[name]) for name in ("logits", "pred_boxes"))
    # A query may be confident of several classes.
    chosen_of_image = [np.unique(queries) for _, _, queries in confident(logits, masks_above, classification)]
    groups = -(-max(1, *map(len, chosen_of_image)) // GROUP)
    chosen = np.zeros((len(chosen_of_image), min(groups * GROUP, logits.shape[1])), np.int32)
    is_confident = np.zeros(chosen.shape, bool)
    for place, queries in enumerate(chosen_of_image):
        chosen[place, : len(queries)], is_confident[place, : len(queries)] = queries, True
    no_object = np.full(logits.shape[2], -np.inf, logits.dtype)
    if classification_named(classification).has_no_object:
        no_object[-1] = 0
    return {
        "logits": np.where(is_confident[..., None], np.take_along_axis(logits, chosen[..., None], 1), no_object),
        "pred_boxes": np.take_along_axis(boxes, chosen[..., None], 1),
        "pred_masks": masks_of(found["mask_inputs"], chosen),
    }


def _with_masks_apart(
    model: Any,
    inputs_spec: Mapping[str, tf.TensorSpec],
    masks_above: float | Sequence[float] | None,
    parts: FoldedParts | None,
) -> Callable[[Mapping[str, tf.Tensor]], dict[str, Any]]:
    """Return the forward pass in two parts, with a check of the scores between them."""

    def before_masks(inputs: Any) -> dict[str, Any]:
        with contextlib.nullcontext() if parts is None else parts.in_place():
            stages = model.stages(inputs, masks=False)
        return {name: stages[name] for name in ("logits", "pred_boxes", "mask_inputs")}

    def forward(detector: Callable[[Any], Any], masks_of: Callable[[Any, Any], Any], inputs: Any) -> dict[str, Any]:
        found = detector(inputs)
        if masks_above is None:
            return {name: value for name, value in found.items() if name != "mask_inputs"}
        return with_confident_masks(found, masks_of, masks_above, model.config.classification)

    backend, kept = keras.backend.backend(), _kept(model)
    if backend == "tensorflow":
        key = _key(inputs_spec, parts)
        if key not in kept:
            kept[key] = _graphs(before_masks, model.masks_of, inputs_spec)
        detector, masks_of = kept[key]
        return lambda inputs: forward(detector, masks_of, inputs)
    if backend == "jax":
        key = parts is not None
        if key not in kept:
            kept[key] = _jitted(model, before_masks, parts), _jitted(model, model.masks_of)
        detector, masks_of = kept[key]
        return lambda inputs: forward(detector, masks_of, _arrays(inputs))
    whole = _Pass(functools.partial(forward, before_masks, model.masks_of))
    return lambda inputs: whole.predict_on_batch(_arrays(inputs))


def _kept(model: keras.Model) -> dict[Any, Any]:
    """Return the model's compiled functions, keyed by what they were compiled for."""
    return model.__dict__.setdefault(INFERENCE_GRAPHS, {})


def _key(inputs_spec: Mapping[str, tf.TensorSpec], parts: FoldedParts | None) -> Any:
    return parts is not None, *sorted((name, str(spec)) for name, spec in inputs_spec.items())


def _folded_parts(model: keras.Model) -> FoldedParts | None:
    """Return the parts of the model that can be folded, with its current weights; None if there are none."""
    if not isinstance(model, Detector) or not model.config.is_foldable:
        return None
    parts = model.__dict__.setdefault(FOLDED_PARTS, None)
    if parts is None:
        parts = model.__dict__[FOLDED_PARTS] = FoldedParts(model)
    parts.follow()
    return parts


def _arrays(inputs: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in inputs.items()}


def _graphs(
    before_masks: Callable[[Any], Any], masks_of: Callable[[Any, Any], Any], inputs_spec: Mapping[str, tf.TensorSpec]
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    """Return both parts as TensorFlow's graphs; the second takes any shapes that the first may return."""
    detector = tf.function(before_masks, input_signature=[inputs_spec], autograph=False)
    given = detector.get_concrete_function().structured_outputs["mask_inputs"]
    specs = keras.tree.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), given)
    queries = tf.TensorSpec((None, None), tf.int32)
    return detector, tf.function(masks_of, input_signature=[specs, queries], autograph=False)


def _jitted(model: keras.Model, function: Callable[..., Any], parts: FoldedParts | None = None) -> Callable[..., Any]:
    """Return a function of the model, with folded parts or its own, compiled by JAX.

    If there are several workers, it runs on this worker's first device: a batch belongs to one worker alone.
    """
    import jax

    variables = model.trainable_variables + model.non_trainable_variables
    variables += [] if parts is None else parts.variables
    here = number_of_processes() > 1

    @jax.jit
    def stateless(values: Any, *arguments: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*arguments)

    def run(*arguments: Any) -> Any:
        values = [variable.value.addressable_data(0) if here else variable.value for variable in variables]
        return stateless(values, *arguments)

    return run


class _Pass(keras.Model):
    """A function of a model, wrapped as a model: `predict_on_batch` then runs it as PyTorch does inference."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function, self.built = function, True

    def call(self, inputs: Any) -> Any:
        """Return the function's result."""
        return self.function(inputs)
