"""The encoding of COCO's panoptic PNG files: a pixel's segment id as a colour, red + 256 green + 65536 blue; 0 = none.

Source: Kirillov et al. 2019, "Panoptic Segmentation", arXiv:1801.00868, and COCO's panoptic data format.
"""

import numpy as np

NUMBER_OF_IDS = 1 << 24  # a file can tell apart, 0 = no segment among them


def ids_of_colours(colours: np.ndarray) -> np.ndarray:
    """Convert `(height, width, 3)` uint8 RGB to `(height, width)` int32 segment ids."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red | green << 8 | blue << 16


def colours_of_ids(ids: np.ndarray) -> np.ndarray:
    """Convert `(height, width)` segment ids, 0 … 2²⁴ − 1, to `(height, width, 3)` uint8 RGB."""
    return np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
