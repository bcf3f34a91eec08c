"""What a detector is given: pixels, and a mask that says which of them are image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras import ops

from tfdetr_keras.losses.targets import refuse_padding


def pixels_and_mask(inputs: Any) -> tuple[Any, Any]:
    """Return the pixels and the mask of a model's inputs; without a mask, one of ones.

    Args:
        inputs: as for `DETR`.

    Raises:
        ValueError: shapes that are not those of images, or do not fit each other, as far as they are known.
    """
    if not isinstance(inputs, Mapping):
        inputs = {"pixel_values": inputs}
    pixels = ops.convert_to_tensor(inputs["pixel_values"])
    if len(pixels.shape) != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"pixel_values must be (batch, height, width, 3), not {tuple(pixels.shape)}")
    mask = inputs.get("pixel_mask")
    if mask is None:
        return pixels, ops.ones(ops.shape(pixels)[:3], dtype="int32")
    mask = ops.convert_to_tensor(mask)
    sides = zip(pixels.shape[:3], mask.shape, strict=False)
    if len(mask.shape) != 3 or any(a is not None and b is not None and a != b for a, b in sides):
        raise ValueError(
            f"pixel_mask {tuple(mask.shape)} must have the batch, height and width of pixel_values "
            f"{tuple(pixels.shape)}"
        )
    return pixels, mask


def pixels_without_padding(inputs: Any, stride: int, title: str) -> Any:
    """Return the pixels of the inputs of a model that knows no padding.

    Args:
        inputs: as for `RTDETR`.
        stride: of which height and width must be multiples.
        title: what people call the model.

    Raises:
        ValueError: as `pixels_and_mask`; padding in a mask, as far as its values are known; another height or width, as
            far as they are.
    """
    pixels, mask = pixels_and_mask(inputs)
    if isinstance(inputs, Mapping) and inputs.get("pixel_mask") is not None:
        refuse_padding(mask, title)
    check_multiples(pixels, stride, title)
    return pixels


def check_multiples(pixels: Any, stride: int, title: str) -> None:
    """Raise a `ValueError` for a height or a width that is no multiple of a stride, as far as they are known."""
    height, width = pixels.shape[1:3]
    if any(side is not None and side % stride for side in (height, width)):
        raise ValueError(
            f"images of {height} x {width} pixels (height x width), but {title} takes multiples of {stride}: resize "
            "them, as model.preprocessing does"
        )
