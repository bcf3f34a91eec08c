"""Naming schemes: which of the tables, with which prefixes, a checkpoint's names follow."""

from __future__ import annotations

from collections.abc import Iterable

from port_weights import families
from port_weights.families.resnet import find_backbone
from port_weights.tables import Scheme as Scheme


def scheme(
    backbone: str = "hugging-face", transformer: str = "hugging-face", model_prefix: str = "", backbone_prefix: str = ""
) -> Scheme:
    """Put a scheme of DETR's, Conditional DETR's or DAB-DETR's together, see `DETRFamily.scheme`.

    Args:
        backbone: `"hugging-face"` (HF-ResNet names) or `"torchvision"` (also timm's and facebookresearch's).
        transformer: `"hugging-face"` (on disk), `"hugging-face-4"` (the same by version 4, with learned positions),
            `"hugging-face-in-memory"` (version 5), `"facebookresearch"` or `"none"` for a backbone alone; for
            Conditional DETR `"conditional-hugging-face"`, `"conditional-hugging-face-in-memory"`, or
            `"conditional-detr"` (its authors'); for DAB-DETR the same with `"dab"`.
        model_prefix: prefix of transformer and heads, `"detr."` in panoptic checkpoints.
        backbone_prefix: the whole prefix of the backbone's tensors.
    """
    known = {"conditional": families.CONDITIONAL_DETR, "dab": families.DAB_DETR}
    return known.get(transformer.split("-")[0], families.DETR).scheme(
        backbone, transformer, model_prefix, backbone_prefix
    )


def detect_scheme(names: Iterable[str]) -> Scheme:
    """Recognise the naming scheme of a checkpoint by a few tensors that only it has.

    Raises:
        ValueError: no known scheme names its tensors so.
    """
    names = set(names)
    if (found := families.detect(names)) is not None:
        return found
    backbone, backbone_prefix = find_backbone(names)
    if backbone and not any("decoder" in name for name in names):
        return scheme(backbone, "none", "", backbone_prefix)
    examples = ", ".join(sorted(names)[:5]) or "no tensors at all"
    raise ValueError(
        "these are not DETR weights of a known naming scheme (Hugging Face on disk or in memory, facebookresearch, or "
        f"a torchvision, timm or Hugging Face ResNet alone); the checkpoint holds {examples} …"
    )
