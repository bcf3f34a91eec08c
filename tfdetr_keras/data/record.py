"""The one record format: what every reader yields and every transform takes.

A record is a dict of tensors describing one image and its objects:

| key          | dtype   | shape              | meaning                                              |
|--------------|---------|--------------------|------------------------------------------------------|
| `image`      | uint8   | (height, width, 3) | RGB                                                  |
| `image_id`   | int64   | ()                 |                                                      |
| `orig_size`  | int32   | (2,)               | height and width before any resize                   |
| `boxes`      | float32 | (objects, 4)       | xyxy, absolute pixels of `image`                     |
| `labels`     | int32   | (objects,)         | 0 .. num_classes - 1                                 |
| `iscrowd`    | bool    | (objects,)         | a group marked as one: no target, ignored in the AP  |
| `area`       | float32 | (objects,)         | pixels² of the object (not of its box) in `image`    |

Annotations are checked here, at the border, so that nothing behind it has to.
"""

import numpy as np
import tensorflow as tf

RECORD_SPEC = {
    "image": tf.TensorSpec((None, None, 3), tf.uint8),
    "image_id": tf.TensorSpec((), tf.int64),
    "orig_size": tf.TensorSpec((2,), tf.int32),
    "boxes": tf.TensorSpec((None, 4), tf.float32),
    "labels": tf.TensorSpec((None,), tf.int32),
    "iscrowd": tf.TensorSpec((None,), tf.bool),
    "area": tf.TensorSpec((None,), tf.float32),
}


def clip_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes to their images and tells which of them still cover anything.

    A non-finite box is left as it is and counted as kept, for `validate_annotations` to report.

    Args:
        boxes: `(objects, 4)` float, xyxy, pixels.
        sizes: `(objects, 2)` or `(2,)`, height and width of each box's image, pixels.

    Returns:
        The clipped boxes `(objects, 4)` and a bool mask `(objects,)` of those with a positive area.
    """
    limits = np.asarray(sizes)[..., [1, 0, 1, 0]]
    clipped = np.clip(boxes, 0, limits)
    finite = np.isfinite(boxes).all(axis=-1)
    positive = (clipped[:, 2:] > clipped[:, :2]).all(axis=-1)
    return np.where(finite[:, None], clipped, boxes), positive | ~finite


def validate_annotations(
    boxes: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    source: str,
    image_ids: int | np.ndarray,
    rows: np.ndarray | None = None,
) -> None:
    """Raises an error that names the first annotation a model could not be trained on.

    Args:
        boxes: `(objects, 4)` float, xyxy, pixels.
        labels: `(objects,)` int.
        num_classes: labels must lie in 0 .. num_classes - 1.
        source: where the annotations come from, usually a file name; for the message.
        image_ids: the image of each object `(objects,)`, or the one image of them all; for the message.
        rows: `(objects,)`, what the source calls each object; 0 .. objects - 1 by default.

    Raises:
        ValueError: wrong shapes, a non-finite coordinate, x2 <= x1 or y2 <= y1, a label out of range.
    """
    boxes, labels = np.asarray(boxes), np.asarray(labels)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"{source}, image {image_ids}: boxes must be (objects, 4) and labels (objects,), "
            f"not {boxes.shape} and {labels.shape}"
        )
    image_ids = np.broadcast_to(image_ids, labels.shape)
    rows = np.arange(len(labels)) if rows is None else rows
    checks = [
        (~np.isfinite(boxes).all(axis=1), "has a box with a non-finite coordinate"),
        (boxes[:, 2] <= boxes[:, 0], "has a box with x2 <= x1 (boxes are x1, y1, x2, y2)"),
        (boxes[:, 3] <= boxes[:, 1], "has a box with y2 <= y1 (boxes are x1, y1, x2, y2)"),
        ((labels < 0) | (labels >= num_classes), f"has a label outside 0..{num_classes - 1}"),
    ]
    for wrong, complaint in checks:
        if wrong.any():
            first = int(np.argmax(wrong))
            raise ValueError(
                f"{source}: image {image_ids[first]}, row {rows[first]} {complaint}: "
                f"box {boxes[first].tolist()}, label {labels[first]}"
            )
