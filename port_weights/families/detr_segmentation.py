"""DETR for segmentation: a detector inside, with a mask head beside it."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from port_weights.families.detr import DETECTOR_OF_SEGMENTATION, DETRFamily


class DETRSegmentationFamily(DETRFamily):
    """What segmentation differs in."""

    member = "DETRForSegmentation"
    config = "SegmentationConfig"
    transformers_class = "DetrForSegmentation"
    prefix = DETECTOR_OF_SEGMENTATION
    has_masks = True

    def is_of(self, paths: AbstractSet[str], names: AbstractSet[str], model_type: str | None) -> bool:
        """Whether there is a mask head."""
        return any(path.startswith("mask_head/") for path in paths)
