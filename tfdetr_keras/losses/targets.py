"""Checks of training targets, with a message for each kind of fault.

Targets are dense: `labels` (batch, boxes) with −1 in padding rows, `boxes` (batch, boxes, 4) cxcywh relative to the
image without its padding. The checks run on the host, before the graph, where a batch is concrete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

PADDING_LABEL = -1
# Rounding of a box that fills the image: cx + w/2 may exceed 1 by an ulp; cx, cy, w, h themselves may, too.
_BORDER_TOLERANCE = 1e-5


def validate_targets(
    labels: Any,
    boxes: Any,
    num_classes: int,
    image_ids: Sequence[Any] | None = None,
    file_of: Callable[[Any], str | None] | None = None,
) -> None:
    """Raise if a detector cannot be trained on the targets.

    Args:
        labels: `(batch, boxes)` int, class of each box; −1 marks a padding row, which is not checked further.
        boxes: `(batch, boxes, 4)` float, cxcywh in [0, 1].
        num_classes: number of real classes; the label `num_classes` means "no object" and must not be in targets.
        image_ids: names of the images for the messages; by default their positions in the batch.
        file_of: image id → the image's file, or None if it is not known, for the messages.

    Raises:
        ValueError: shapes that do not fit, a label outside [−1, num_classes), a box that is not finite, has a negative
            size or lies outside [0, 1]; the message names the image, the row and the value.
    """
    labels, boxes = np.asarray(labels), np.asarray(boxes)
    if labels.ndim != 2 or boxes.ndim != 3 or boxes.shape != (*labels.shape, 4):
        raise ValueError(
            f"targets need labels (batch, boxes) and boxes (batch, boxes, 4) but have labels {labels.shape} and "
            f"boxes {boxes.shape}; pad images with fewer boxes by rows with label {PADDING_LABEL}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"targets' labels must be integers, not {labels.dtype}")

    def refuse(wrong: np.ndarray, values: np.ndarray, message: str) -> None:
        if not wrong.any():
            return
        image, row = np.argwhere(wrong)[0].tolist()
        where = f"image {image} of the batch" if image_ids is None else f"image id {image_ids[image]}"
        if image_ids is not None and file_of is not None and (file := file_of(image_ids[image])):
            where += f" ({file})"
        raise ValueError(f"targets, {where}, row {row}: {message.format(value=values[image, row].tolist())}")

    real = labels != PADDING_LABEL
    refuse(
        (labels < PADDING_LABEL) | (labels >= num_classes),
        labels,
        f"label {{value}} is not a class: expected 0 … {num_classes - 1} for num_classes={num_classes} "
        f"(or {PADDING_LABEL} for a padding row)",
    )
    refuse(real & ~np.isfinite(boxes).all(-1), boxes, "box {value} is not finite")
    refuse(
        real & (boxes[..., 2:] < 0).any(-1),
        boxes,
        "box {value} has a negative width or height: expected (centre x, centre y, width, height)",
    )
    outside = (boxes < -_BORDER_TOLERANCE).any(-1) | (boxes > 1 + _BORDER_TOLERANCE).any(-1)
    refuse(
        real & outside,
        boxes,
        "box {value} is outside [0, 1]: expected (centre x, centre y, width, height) divided by the image's size",
    )


def dense_targets(targets: Any) -> Any:
    """Pad ragged targets to dense ones; leave everything else as it is.

    Args:
        targets: a dict whose `labels` `(batch, None)` and `boxes` `(batch, None, 4)` may be `tf.RaggedTensor`s, which
            `tf.data` makes from images with different numbers of objects.

    Returns:
        The dict with these as tensors: label −1 and box 0 where there is no object.
    """
    if not isinstance(targets, Mapping):
        return targets
    dense = dict(targets)
    for key, padding in (("labels", PADDING_LABEL), ("boxes", 0.0)):
        value: Any = targets.get(key)
        if hasattr(value, "to_tensor") and hasattr(value, "bounding_shape"):  # a RaggedTensor, TensorFlow not imported
            dense[key] = value.to_tensor(padding, shape=(None, None, 4) if key == "boxes" else None)
    return dense


def validate_batch(targets: Any, num_classes: int) -> None:
    """Check a concrete batch of targets; leave a batch that is being traced to the data pipeline's checks.

    Args:
        targets: `{"labels", "boxes"}` as in `validate_targets`, optionally with `"image_id"`.
        num_classes: number of real classes.

    Raises:
        ValueError: `targets` is not such a dictionary; also as `validate_targets`.
    """
    if not isinstance(targets, Mapping) or not {"labels", "boxes"} <= set(targets):
        got = sorted(targets) if isinstance(targets, Mapping) else type(targets).__name__
        raise ValueError(
            f'targets must be {{"labels": (batch, boxes) int, "boxes": (batch, boxes, 4) cxcywh}}, not {got}'
        )
    targets = dense_targets(targets)
    labels, boxes = on_host(targets["labels"]), on_host(targets["boxes"])
    if labels is not None and boxes is not None:
        image_ids = on_host(targets["image_id"]) if "image_id" in targets else None
        validate_targets(labels, boxes, num_classes, None if image_ids is None else image_ids.tolist())


def on_host(tensor: Any) -> np.ndarray | None:
    """Return the tensor's value, or None if it is a symbol of a graph being traced."""
    if isinstance(tensor, (np.ndarray, list, tuple)):
        return np.asarray(tensor)
    try:
        return np.asarray(ops.convert_to_numpy(tensor))
    except (TypeError, ValueError, NotImplementedError):  # what TensorFlow, JAX and Keras raise for symbols
        return None
