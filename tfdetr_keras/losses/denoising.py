"""Denoising queries: objects that were made wrong, which the decoder learns to put right (DINO, section 3.3).

Each object is asked for several times, in groups that do not see each other: once as a box that is a little off, which
is to be mended, and once as one that is far off, which is to be refused. Queries are slots of a fixed number, so that
one compiled step serves batches of any number of objects: what a batch does not need is seen by nobody and counts for
nothing.

Source:
    Zhang et al. 2022, "DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection",
    arXiv:2203.03605, section 3.3; groups and noise as in RT-DETR's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from tfdetr_keras.backend.replicas import max_over_replicas
from tfdetr_keras.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from tfdetr_keras.losses.targets import PADDING_LABEL, dense_targets

LABEL_NOISE_RATIO, BOX_NOISE_SCALE = 0.5, 1.0


class DenoisingQueries(NamedTuple):
    """Queries made of objects.

    Attributes:
        labels: `(batch, slots)` int32, the classes that are claimed; `num_classes` where an image has no such object.
        boxes: `(batch, slots, 4)` float32 at least, cxcywh in [0, 1]; the boxes that are claimed.
        groups: `(slots,)` int32, the group of each slot; −1 for slots that are not used.
        queries: `(batch, slots)` int32, the slots that are to be mended, −1 = none.
        objects: `(batch, slots)` int32, the row of the targets that each of them is to become; the number of rows for
            none.
    """

    labels: Any
    boxes: Any
    groups: Any
    queries: Any
    objects: Any

    def attention_mask(self, num_queries: int) -> Any:
        """Return which query sees which, where the denoising queries stand before the others.

        A group sees itself and the others; the others see none of a group, since they are to find objects, not to
        read them; slots that are not used are seen by nobody.

        Args:
            num_queries: of the other queries.

        Returns:
            `(1, slots + num_queries, slots + num_queries)` bool, True = sees.
        """
        # The others are one more group, which everyone sees.
        groups = ops.concatenate([self.groups, ops.full((num_queries,), -2, dtype="int32")])
        is_same = ops.logical_and(groups[:, None] == groups[None], groups[None] >= 0)
        return ops.logical_or(is_same, groups[None] == -2)[None]


def denoising_queries(
    targets: Mapping[str, Any],
    num_classes: int,
    num_denoising: int,
    seed: Any = None,
    draws: Mapping[str, Any] | None = None,
    label_noise_ratio: float = LABEL_NOISE_RATIO,
    box_noise_scale: float = BOX_NOISE_SCALE,
    absolute_sizes: bool = False,
) -> DenoisingQueries:
    """Make denoising queries of a batch's objects.

    With M the most objects that an image of the batch has, over all replicas, there are max(1, ⌊num_denoising / M⌋)
    groups of 2 M slots: each object's box with its corners moved by less than half of its width and height, and then
    each once more, moved by at least as much. Half of `label_noise_ratio` of the labels are drawn anew.

    Args:
        targets: `labels` `(batch, rows)` int, −1 = padding, and `boxes` `(batch, rows, 4)` cxcywh in [0, 1].
        num_classes: real classes.
        num_denoising: how many objects all groups together hold; there are 2 · max(num_denoising, rows) slots.
        seed: an integer, with which the queries are always the same; a `keras.random.SeedGenerator`; or None for
            Keras' own.
        draws: random numbers to use instead: `flip` `(batch, slots)` in [0, 1), below half of `label_noise_ratio` where
            a label is drawn anew; `label` `(batch, slots)` int, the label then; `sign` `(batch, slots, 4)`, −1 or 1,
            into which direction each side of a box moves, and `part` `(batch, slots, 4)` in [0, 1), how far.
        label_noise_ratio: twice the share of labels that are drawn anew, some of them to what they were.
        box_noise_scale: factor on the boxes' moves.
        absolute_sizes: whether a box that is so far off that its corners have crossed is the one between them, as
            D-FINE's authors have it, instead of one whose side is 0 (RT-DETR).

    Returns:
        The queries; without any object in the batch none of the slots is used.

    Source:
        DINO, section 3.3 ("Contrastive DeNoising Training"); D-FINE's code.
    """
    dense = dense_targets(targets)
    labels = ops.cast(ops.convert_to_tensor(dense["labels"]), "int32")
    boxes = ops.convert_to_tensor(dense["boxes"])
    dtype = keras.backend.result_type(boxes.dtype, "float32")
    boxes = ops.cast(boxes, dtype)
    batch, rows = ops.shape(labels)
    slots = 2 * (max(num_denoising, rows) if isinstance(rows, int) else ops.maximum(num_denoising, rows))
    # One row more, which is padding, so that there is a row at all; then the objects come first.
    labels = ops.pad(labels, [[0, 0], [0, 1]], constant_values=PADDING_LABEL)
    boxes = ops.pad(boxes, [[0, 0], [0, 1], [0, 0]])
    order = ops.arange(rows + 1, dtype="int32") + ops.where(labels >= 0, 0, rows + 1)
    order = ops.cast(ops.argsort(order, axis=1), "int32")

    most = max_over_replicas(ops.max(ops.sum(ops.cast(labels >= 0, "int32"), axis=1)))
    each = ops.maximum(most, 1)
    slot = ops.arange(slots, dtype="int32")
    group, within = slot // (2 * each), slot % (2 * each)
    is_used = ops.logical_and(group < ops.maximum(num_denoising // each, 1), most > 0)
    is_negative = within >= each
    # Another replica may have more objects than there are rows here: the last row is padding.
    objects = ops.take(order, ops.minimum(within % each, rows), axis=1)  # (batch, slots)

    label = ops.take_along_axis(labels, objects, axis=1)
    is_object = label >= 0
    label = ops.where(is_object, label, num_classes)
    box = ops.take_along_axis(boxes, objects[..., None], axis=1)
    box = ops.where(is_object[..., None], box, 0.0)
    draws = _drawn((batch, slots), num_classes, seed) if draws is None else draws
    is_drawn = ops.logical_and(is_object, ops.cast(draws["flip"], "float32") < label_noise_ratio / 2)
    label = ops.where(is_drawn, ops.cast(draws["label"], "int32"), label)

    part = ops.cast(draws["part"], dtype) + ops.cast(is_negative, dtype)[None, :, None]
    half = ops.tile(box[..., 2:], (1, 1, 2)) / 2 * box_noise_scale
    corners = cxcywh_to_xyxy(box) + ops.cast(draws["sign"], dtype) * part * half
    box = xyxy_to_cxcywh(ops.clip(corners, 0.0, 1.0))
    box = ops.abs(box) if absolute_sizes else ops.maximum(box, 0.0)  # where corners have crossed

    is_mended = ops.logical_and(ops.logical_and(is_used, ops.logical_not(is_negative)), is_object)
    return DenoisingQueries(label, box, ops.where(is_used, group, -1), ops.where(is_mended, slot, -1), objects)


def _drawn(shape: tuple[Any, Any], num_classes: int, seed: Any) -> dict[str, Any]:
    """Draw the random numbers of each slot."""
    # One integer would give the same numbers four times.
    seeds = [seed * 4 + index for index in range(4)] if isinstance(seed, int) else [seed] * 4
    of_sides = (*shape, 4)
    return {
        "flip": keras.random.uniform(shape, seed=seeds[0]),
        "label": keras.random.randint(shape, 0, num_classes, seed=seeds[1]),
        "sign": 2.0 * ops.cast(keras.random.uniform(of_sides, seed=seeds[2]) < 0.5, "float32") - 1.0,
        "part": keras.random.uniform(of_sides, seed=seeds[3]),
    }
