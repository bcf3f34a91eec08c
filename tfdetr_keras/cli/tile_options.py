"""The options that cut images into tiles."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfdetr_keras.data.tiles import Tiles

OVERLAP = 0.2


def add_tile_options(command: argparse.ArgumentParser) -> None:
    """Add --tile and --overlap."""
    group = command.add_argument_group("tiles, for small objects in large images")
    group.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="look at tiles of the images instead of whole ones: squares of so many pixels of the original image, each "
        "prepared as an image of its own; what several tiles see of an object is merged",
    )
    group.add_argument(
        "--overlap",
        type=float,
        metavar="SHARE",
        help="of neighbouring tiles, as a share of their side; objects smaller than it are whole in one tile (default: "
        f"{OVERLAP})",
    )


def given_tiles(options: argparse.Namespace) -> Tiles | None:
    """Return the tiles that the options name, or None for whole images.

    Raises:
        ValueError: tiles that cannot be, or an overlap of none.
    """
    if options.tile is None:
        if options.overlap is not None:
            raise ValueError("--overlap is for tiles: give --tile, too")
        return None
    if options.tile < 1:
        raise ValueError(f"--tile must be at least 1 pixel, not {options.tile}")
    overlap = OVERLAP if options.overlap is None else options.overlap
    if not 0 <= overlap < 1:
        raise ValueError(f"--overlap must be at least 0 and below 1, not {overlap}")
    from tfdetr_keras.data.tiles import Tiles

    return Tiles(options.tile, overlap)
