"""The box formats of data sets, each converted to corners in pixels. The user names the format; it is never guessed."""

from typing import Any, Literal, get_args

import numpy as np

BoxFormat = Literal["xyxy", "xywh", "cxcywh", "yxyx"]


def check_box_format(box_format: str) -> None:
    """Raise a ValueError if the format does not exist."""
    if box_format not in get_args(BoxFormat):
        raise ValueError(f"box_format must be one of {get_args(BoxFormat)}, not {box_format!r}")


def to_xyxy(boxes: Any, box_format: BoxFormat, size: Any = None) -> np.ndarray:
    """Convert boxes of any format to corners.

    Args:
        boxes: `(objects, 4)` numbers. "xyxy": left, top, right, bottom; "xywh": left, top, width, height; "cxcywh":
            centre, width, height; "yxyx": top, left, bottom, right.
        box_format: which of these.
        size: (height, width) of the image, or `(objects, 2)`, if the boxes are relative to it (0 .. 1); None if they
            are in pixels, or are to stay relative.

    Returns:
        `(objects, 4)` float64, xyxy.

    Raises:
        ValueError: an unknown format, or boxes of another shape.
    """
    check_box_format(box_format)
    boxes = np.asarray(boxes, np.float64)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (objects, 4), not {boxes.shape}")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite stays so, for the validation to refuse
        if box_format == "yxyx":
            boxes = boxes[:, [1, 0, 3, 2]]
        elif box_format == "xywh":
            boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        elif box_format == "cxcywh":
            boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        return boxes if size is None else boxes * np.asarray(size, np.float64)[..., [1, 0, 1, 0]]
