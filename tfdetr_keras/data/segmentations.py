"""COCO's segmentations and masks: polygons, and run lengths down the columns, with or without compression to text."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_MAX_COORDINATE = 1e6  # pixels, of a polygon: pycocotools walks along its sides in memory
_COMPRESSED = re.compile(r"(?:[P-o]{0,6}[0-O])+")  # lengths in digits of 5 bits; those from "P" on have another next


def rasterise(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Turn COCO's polygons or run lengths into a mask, as pycocotools does.

    Args:
        segmentation: a list of polygons `[x, y, x, y, …]`, or run lengths `{"counts", "size"}`, compressed or not.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        `(height, width)` bool.

    Raises:
        ValueError: neither of the two; the message begins with "has".
    """
    from pycocotools import mask as coco_mask

    if not segmentation:
        return np.zeros((height, width), bool)
    if complaint := segmentation_complaint(segmentation, height, width):
        raise ValueError(complaint)
    if isinstance(segmentation, list):
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))).astype(bool)
    lengths = segmentation["counts"]
    if isinstance(lengths, str):
        lengths = _decompressed(lengths)
        if complaint := _lengths_complaint(lengths, height, width):
            raise ValueError(complaint)
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def run_lengths(masks: Any) -> list[dict[str, Any]]:
    """Turn masks into COCO's compressed run lengths, which take some hundred bytes each.

    Args:
        masks: `(objects, height, width)` bool; or a list of run lengths `{"counts", "size"}`, which are compressed if
            they are not yet.

    Returns:
        Per mask `{"size": [height, width], "counts": bytes}`, as `pycocotools.mask.encode` returns them.

    Raises:
        ValueError: neither of the two; the message begins with "has".
    """
    from pycocotools import mask as coco_mask

    if isinstance(masks, (list, tuple)) and all(isinstance(mask, Mapping) for mask in masks):
        return [_compressed(mask) for mask in masks]
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype != bool:
        raise ValueError(
            f"has masks of the shape {masks.shape}, {masks.dtype}, not (n, height, width), bool, or n run lengths"
        )
    # One at a time: pycocotools wants columns contiguous, which all together would be a copy of the whole.
    return [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


def _compressed(mask: Mapping[str, Any]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    counts, size = mask.get("counts"), mask.get("size")
    counts = counts.decode("latin-1") if isinstance(counts, bytes) else counts
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(is_whole(side) and side > 0 for side in size):
        raise ValueError(f"has run lengths of the size {size}, not (height, width)")
    height, width = size
    if complaint := segmentation_complaint({"counts": counts, "size": [height, width]}, height, width):
        raise ValueError(complaint)
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode()}
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _decompressed(counts: str) -> list[int]:
    """Return the run lengths of COCO's text.

    Each number is written in 5-bit digits, lowest first, less the last but one number, if any.

    Source: `rleFrString` of pycocotools, which does not check whether they add up.
    """
    lengths: list[int] = []
    value = shift = 0
    for letter in counts.encode():
        digit = letter - ord("0")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (digit & 16) << shift - 4  # its sign
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths


def _lengths_complaint(lengths: Any, height: int, width: int) -> str:
    if not isinstance(lengths, list) or not all(is_whole(length) and length >= 0 for length in lengths):
        return "has run lengths that are neither whole numbers nor compressed"
    if sum(lengths) != height * width:
        return f"has run lengths that add up to {sum(lengths)}, not to {height} x {width} pixels"
    return ""


def segmentation_complaint(segmentation: Any, height: int, width: int) -> str:
    """Return what is wrong with polygons or run lengths, which pycocotools would not check; "" if nothing is."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return "has a polygon that is not [x, y, x, y, x, y, …]"
            if not all(is_number(side) and abs(side) <= _MAX_COORDINATE for side in polygon):
                return f"has a polygon with a coordinate that is not a number up to {_MAX_COORDINATE:.0f} pixels"
        return ""
    if not isinstance(segmentation, dict) or not {"counts", "size"} <= segmentation.keys():
        return "has a segmentation that is neither polygons nor run lengths with counts and size"
    counts, size = segmentation["counts"], segmentation["size"]
    if size != [height, width]:
        return f"has run lengths of the size {size}, but its image has {[height, width]} (height, width)"
    if isinstance(counts, str) and _COMPRESSED.fullmatch(counts):
        return ""  # so far: to add them up takes too long for a whole set at once
    return _lengths_complaint(counts, height, width)


def is_whole(value: Any) -> bool:
    """Return whether a value of a JSON file is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value of a JSON file is a number that fits into a float."""
    return isinstance(value, float) or (is_whole(value) and abs(value) < 2**63)
