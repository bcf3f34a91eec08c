"""Evaluation of a model's panoptic segmentations of a dataset: panoptic quality, PQ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfdetr_keras.backend.processes import gather
from tfdetr_keras.data.checks import readable_errors
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import Record
from tfdetr_keras.evaluation.batches import check_measurable, evaluation_batches
from tfdetr_keras.evaluation.panoptic_quality import PanopticQuality
from tfdetr_keras.evaluation.panoptic_results import panoptic_truth
from tfdetr_keras.inference.detection import PANOPTIC_THRESHOLD, check_classes, classification_of, panoptic_segments
from tfdetr_keras.inference.forward_pass import forward_function
from tfdetr_keras.preprocessing import Preprocessing, SizeRule, preprocessing_for


def evaluate_panoptic(
    model: keras.Model,
    records: tf.data.Dataset,
    class_names: Sequence[str],
    things: Sequence[bool],
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    pad_to: tuple[int, int] | None = None,
    size_rule: SizeRule | None = None,
    threshold: float = PANOPTIC_THRESHOLD,
    progress: Callable[[int], None] | None = None,
    preprocessing: Preprocessing | None = None,
) -> dict[str, Any]:
    """Run a model over a dataset of panoptic records and compute panoptic quality, one image after the other.

    Segments are those that `model.segment(…, things=things)` finds: an image has one segment per class of stuff. They
    are compared in the size of the original image. Where several processes work together
    (`tfdetr_keras.backend.processes`), each measures its part of the records, and all get the quality of the whole.

    Args:
        model: returns `{"logits": (batch, queries, num_classes + 1), last = no object, "pred_masks": (batch, queries,
            h, w) logits over the canvas}` for `prepare`'s inputs, as a `DETRForSegmentation` does.
        records: of a panoptic set, with masks that do not overlap, see `td.data.load_coco_panoptic`.
        class_names: name of each label; "N/A" for a label that is not in use, which counts in no mean.
        things: of each label, whether it is a thing, see `td.data.coco_things`; the others are stuff.
        size: of images, instead of the preprocessing's, see `td.Preprocessing`.
        batch_size: images a batch; the padding of a batch changes a model's answers a little, 1 has none.
        pad_to: (height, width) of a fixed canvas, pixels, instead of the preprocessing's.
        size_rule: by which images are resized, instead of the preprocessing's.
        threshold: only queries with a higher score become segments.
        progress: called with the number of images done, after each batch.
        preprocessing: how images are prepared; by default the model's own.

    Returns:
        See `PanopticQuality.result`.

    Raises:
        ValueError: records without masks, or whose masks overlap; a model of another number of classes, or without a
            mask head; another number of `things` than of class names; an invalid preprocessing.

    Source: as `tfdetr_keras.evaluation.panoptic_quality`; segments by `tfdetr_keras.inference.segments`.
    """
    quality = PanopticQuality(class_names, things)
    if "masks" not in records.element_spec:
        raise ValueError("the records have no masks to compare segments with: read them with load_coco_panoptic")
    check_measurable(records)
    chosen = preprocessing_for(model, preprocessing, size, pad_to, size_rule)
    batches = evaluation_batches(records, _truth, chosen, batch_size)
    forward = forward_function(model, batches.element_spec[0], threshold)
    done = 0
    with readable_errors():
        for inputs, targets in batches:
            outputs = forward(inputs)
            check_classes(model, outputs, len(class_names))
            arrays = {key: value.numpy() for key, value in targets.items()}
            found = panoptic_segments(
                outputs, arrays["orig_size"], inputs["pixel_mask"].numpy(), threshold, things, classification_of(model)
            )
            for truth, prediction in zip(_truths(arrays), found, strict=True):
                quality.add(truth, prediction)
            done += len(found)
            if progress is not None:
                progress(done)
    quality.sums = np.sum(gather(quality.sums), axis=0)
    return quality.result()


def _truth(record: Record) -> dict[str, tf.Tensor]:
    """Return a record's segments as one map instead of one mask each; the segment of row 0 is 1."""

    def segmentation(*values: np.ndarray) -> np.ndarray:
        return panoptic_truth(dict(zip(keys, values, strict=True)))["segmentation"]

    keys = ("image_id", "masks", "labels", "iscrowd")
    one_map = tf.ensure_shape(numpy_call(segmentation, [record[key] for key in keys], tf.int32), (None, None))
    return {"segmentation": one_map, "labels": record["labels"], "iscrowd": record["iscrowd"]}


def _truths(targets: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Yield the ground truth of each image of a batch, without the padding."""
    for row, image_id in enumerate(targets["image_id"]):
        height, width = targets["orig_size"][row]
        columns = zip(targets["true_labels"][row].tolist(), targets["true_iscrowd"][row].tolist(), strict=True)
        yield {
            "image_id": int(image_id),
            "segmentation": targets["true_segmentation"][row, :height, :width],
            "segments_info": [
                {"id": number, "label_id": label, "iscrowd": iscrowd}
                for number, (label, iscrowd) in enumerate(columns, start=1)
                if label >= 0
            ],
        }
