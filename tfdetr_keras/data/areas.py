"""Find areas of objects that cannot be right; COCO's AP by size depends on the areas.

Exporters write 0 where they know no area, or fractions of the image where pixels² are meant; every object is "small"
then.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdetr_keras.data.segmentations import rasterise, segmentation_complaint

NOT_BELIEVED = "areas that do not fit their box"
MOST = 2.0  # times that of its box, by which no object is larger; masks may be a pixel wider and higher
LEAST_BOX = 16.0  # pixels², of which an object covers one at least


def not_believed(areas: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Tell which areas cannot be those of objects in their boxes.

    Args:
        areas: `(objects,)` float, pixels².
        boxes: `(objects, 4)` float, xyxy, pixels, not clipped.

    Returns:
        `(objects,)` bool, True for an area that is 0, negative or not finite, twice as large as its box, or below
        one pixel² in a box of more than 16. For a box without an area, every area above 0 is accepted.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
        box_areas = sides.prod(axis=1)
        too_large = areas > MOST * (sides + 1).prod(axis=1)
        too_small = ~(areas > 0) | ((areas < 1) & (box_areas > LEAST_BOX))
    return (too_small | too_large | ~np.isfinite(areas)) & (box_areas > 0)


def segmentation_area(segmentation: Any, height: int, width: int) -> float | None:
    """Return the area of a segmentation in COCO's format, pixels²; None if it is missing or cannot be read."""
    if not segmentation or segmentation_complaint(segmentation, height, width):
        return None
    if isinstance(segmentation, list):
        outlines = [np.reshape(outline, (-1, 2)) for outline in segmentation]
        following = [np.roll(outline, -1, axis=0) for outline in outlines]
        crossed = [
            np.sum(here[:, 0] * there[:, 1] - there[:, 0] * here[:, 1])
            for here, there in zip(outlines, following, strict=True)
        ]
        return float(np.abs(crossed).sum() / 2) or None
    try:
        return float(rasterise(segmentation, height, width).sum()) or None
    except ValueError:  # compressed lengths, which are added up only there
        return None
