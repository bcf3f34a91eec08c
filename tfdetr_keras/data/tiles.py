"""Tiles of large images, cut while they are read, so that small objects are as large as a model was trained on.

Source:
    Akyon, Altinuc and Temizel 2022, "Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection",
    arXiv:2202.06934.
"""

from __future__ import annotations

import dataclasses
import math
from numbers import Integral, Real

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import Record
from tfdetr_keras.data.transforms import boxes_in_window, have_sides, select


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Where images are cut.

    The tiles of an image are all as large, unless the image is smaller. They begin at its left and upper edge and end
    at its right and lower one, and overlap by the share or more. An object that is smaller than the overlap is whole
    in one of them.

    Args:
        size: of a tile, pixels; one side, or height and width.
        overlap: of neighbours, as a share of their side, at least 0 and below 1.

    Raises:
        ValueError: a size that is not at least one pixel, or another overlap.
    """

    size: int | tuple[int, int]
    overlap: float = 0.2

    def __post_init__(self) -> None:
        sides = self.sides
        if len(sides) != 2 or any(
            isinstance(side, bool) or not isinstance(side, Integral) or side < 1 for side in sides
        ):
            raise ValueError(f"size must be a number of pixels, or height and width, not {self.size!r}")
        if isinstance(self.overlap, bool) or not isinstance(self.overlap, Real) or not 0 <= float(self.overlap) < 1:
            raise ValueError(f"overlap must be at least 0 and below 1, not {self.overlap!r}")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a tile, pixels."""
        if isinstance(self.size, (tuple, list)):
            return tuple(self.size)  # type: ignore[return-value]
        return self.size, self.size

    def windows(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Return top, left, height and width of each tile of an image, row by row, pixels."""
        starts = [self._starts(length, side) for length, side in zip((height, width), self.sides, strict=True)]
        down, across = (min(length, side) for length, side in zip((height, width), self.sides, strict=True))
        return [(top, left, down, across) for top in starts[0] for left in starts[1]]

    def _starts(self, length: int, side: int) -> list[int]:
        if length <= side:
            return [0]
        most = max(1, math.floor(side * (1 - self.overlap)))  # pixels from one tile to the next
        steps = math.ceil((length - side) / most)
        return [round(step * (length - side) / steps) for step in range(steps + 1)]


def cut_tiles(
    records: tf.data.Dataset,
    tiles: Tiles,
    least_visible: float = 0.3,
    empty: float = 0.1,
    seed: int = 0,
) -> tf.data.Dataset:
    """Cut records into tiles, for training on images with small objects; an image is decoded once for all of its tiles.

    An object that a tile cuts is one of the tile's objects if enough of it is to be seen, with its box clipped to the
    tile. What is to be seen of other objects becomes a crowd: no target, and nothing that a detection is blamed for.
    All tiles of an image have its `image_id`.

    Args:
        records: see `tfdetr_keras.data.record`.
        tiles: where to cut.
        least_visible: the share of an object's box that has to be in a tile, above 0, at most 1.
        empty: the share of the tiles without objects that stay, from 0 to 1; the same ones in each epoch.
        seed: of the lots that these draw.

    Returns:
        A dataset of records.

    Raises:
        ValueError: a share out of range.
    """
    if not 0 < least_visible <= 1:
        raise ValueError(f"least_visible must be above 0 and at most 1, not {least_visible}")
    if not 0 <= empty <= 1:
        raise ValueError(f"empty must be from 0 to 1, not {empty}")

    def tiles_of(record: Record) -> tf.data.Dataset:
        size = tf.shape(record["image"])[:2]
        windows = numpy_call(lambda size: _windows(tiles, size), [size], tf.int32)
        windows = tf.ensure_shape(windows, (None, 4))
        places = tf.data.Dataset.range(tf.shape(windows, tf.int64)[0])
        cut = places.map(lambda place: _with_lot(_tile(record, windows[place], least_visible), place, seed))
        return cut.filter(lambda tile, lot: tf.reduce_any(~tile["iscrowd"]) | (lot < empty)).map(lambda tile, _: tile)

    return records.flat_map(tiles_of)


def _windows(tiles: Tiles, size: np.ndarray) -> np.ndarray:
    return np.array(tiles.windows(*(int(side) for side in size)), np.int32)


def _with_lot(tile: Record, place: tf.Tensor, seed: int) -> tuple[Record, tf.Tensor]:
    """Return a tile with its lot, a number in [0, 1) that only depends on the image and the tile's place in it."""
    folded = tf.stack([tile["image_id"] + seed, place])
    return tile, tf.random.stateless_uniform((), folded)


def _tile(record: Record, window: tf.Tensor, least_visible: float) -> Record:
    """Cut one tile."""
    top, left, height, width = tf.unstack(window)
    seen = boxes_in_window(record, window)
    whole = record["boxes"][:, 2:] - record["boxes"][:, :2]
    part = seen["boxes"][:, 2:] - seen["boxes"][:, :2]
    share = tf.reduce_prod(part, axis=1) / tf.reduce_prod(whole, axis=1)
    seen["iscrowd"] = record["iscrowd"] | (share < least_visible)
    seen["image"] = record["image"][top : top + height, left : left + width]
    seen["orig_size"] = window[2:]
    if "masks" in record:
        seen["masks"] = record["masks"][:, top : top + height, left : left + width]
    return select(seen, have_sides(seen["boxes"]))
