"""Resizing of a batch's masks to their images' sizes: enlarged to the canvas, cropped, and resized.

Numbers are those of PyTorch's `interpolate`, bilinear without anti-aliasing, one image and one mask at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops


class Taps(NamedTuple):
    """For each new place of an axis, the two old places that it lies between, and the second one's weight."""

    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray


class Frame(NamedTuple):
    """The resizing of one image's masks: enlargements one after the other, along each axis."""

    size: tuple[int, int]
    rows: list[Taps]
    columns: list[Taps]

    def resized(self, mask: np.ndarray) -> np.ndarray:
        """Resize a mask `(h, w)` float32 to `(height, width)`."""
        for axis, steps in ((1, self.columns), (0, self.rows)):
            for lower, upper, weight in steps:
                first, second = np.take(mask, lower, axis), np.take(mask, upper, axis)
                share = weight if axis else weight[:, None]
                first *= 1 - share
                second *= share
                first += second  # in place: twice as fast
                mask = first
        return mask


def frames_of(masks: np.ndarray, target_sizes: Any, pixel_mask: Any) -> list[Frame]:
    """Return a `Frame` for each image of the batch."""
    batch, grid = len(masks), masks.shape[2:]
    sizes, canvas = None, None
    if target_sizes is not None:
        sizes = np.asarray(ops.convert_to_numpy(target_sizes))
        if sizes.shape != (batch, 2) or not (sizes >= 1).all():
            raise ValueError(
                f"target_sizes must be (height, width), at least 1 pixel, for each of the {batch} images, not "
                f"{sizes.tolist()}"
            )
    insides = [grid] * batch
    if pixel_mask is not None:
        pixel_mask = np.asarray(ops.convert_to_numpy(pixel_mask)) != 0
        if pixel_mask.ndim != 3 or len(pixel_mask) != batch:
            raise ValueError(f"pixel_mask must be (batch, height, width) = ({batch}, …), not {pixel_mask.shape}")
        canvas, insides = pixel_mask.shape[1:], [_inside(mask, place) for place, mask in enumerate(pixel_mask)]
    frames = []
    for place, inside in enumerate(insides):
        size = inside if sizes is None else (int(sizes[place, 0]), int(sizes[place, 1]))
        steps: tuple[list[Taps], list[Taps]] = ([], [])
        for axis in (0, 1):
            if canvas is not None:
                # The crop: of the canvas, only the image's rows and columns are computed.
                steps[axis].append(Taps(*(taps[: inside[axis]] for taps in _taps(grid[axis], canvas[axis]))))
            if size[axis] != inside[axis]:
                steps[axis].append(_taps(inside[axis], size[axis]))
        frames.append(Frame(size, *steps))
    return frames


def _inside(mask: np.ndarray, place: int) -> tuple[int, int]:
    """Return the height and width of the image on its canvas."""
    height, width = int(mask[:, 0].sum()), int(mask[0].sum())
    if not height or not mask[:height, :width].all() or mask.sum() != height * width:
        raise ValueError(
            f"image {place} of the batch: pixel_mask must be 1 in a rectangle at the top left, the image, and 0 in the "
            "padding"
        )
    return height, width


def _taps(old: int, new: int) -> Taps:
    """Return the bilinear interpolation of `old` values to `new`, not anti-aliased.

    An edge's outer half stays constant.

    The numbers are PyTorch's: the step is float32, and so is each place between the old values, but it is rounded only
    once, after the multiplication and the subtraction. Rounding twice would move a mask by 1e-5.
    """
    step = float(np.float32(old) / np.float32(new))
    places = np.maximum((np.arange(new) + 0.5) * step - 0.5, 0).astype(np.float32)
    lower = np.minimum(places.astype(np.int64), old - 1)
    return Taps(lower, np.minimum(lower + 1, old - 1), np.minimum(places - lower.astype(np.float32), np.float32(1)))
