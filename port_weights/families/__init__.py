"""The members of the family as PyTorch's world has them: one file each, and the list of them."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

from port_weights.families.conditional_detr import ConditionalDETRFamily
from port_weights.families.dab_detr import DABDETRFamily
from port_weights.families.deformable_detr import DeformableDETRFamily
from port_weights.families.detr import DETRFamily
from port_weights.families.detr_segmentation import DETRSegmentationFamily
from port_weights.families.dfine import DFINEFamily
from port_weights.families.family import Family
from port_weights.families.lw_detr import LWDETRFamily
from port_weights.families.rf_detr import RFDETRFamily
from port_weights.families.rf_detr_segmentation import RFDETRSegmentationFamily
from port_weights.families.rt_detr import RTDETRFamily
from port_weights.families.rt_detr_v2 import RTDETRV2Family
from port_weights.families.table_transformer import TableTransformerFamily
from port_weights.tables import Scheme

# The first that knows a checkpoint's names and says that it is its own counts: what is more special comes first.
DETR, CONDITIONAL_DETR, DAB_DETR = DETRFamily(), ConditionalDETRFamily(), DABDETRFamily()
FAMILIES: list[Family] = [
    RFDETRSegmentationFamily(),
    RFDETRFamily(),
    LWDETRFamily(),
    DFINEFamily(),
    RTDETRV2Family(),
    RTDETRFamily(),
    DAB_DETR,
    CONDITIONAL_DETR,
    DeformableDETRFamily(),
    DETRSegmentationFamily(),
    TableTransformerFamily(),
    DETR,
]


def register(family: Family) -> Family:
    """Make porting know a member of your own.

    Raises:
        ValueError: a member of that name is known already.
    """
    if any(known.member == family.member for known in FAMILIES):
        raise ValueError(f"{family.member!r} is known already")
    FAMILIES.insert(0, family)
    return family


def family_of(config: Any) -> Family:
    """Return the record of the member that a configuration is of.

    Raises:
        ValueError: porting does not know it.
    """
    name = type(config).__name__
    family = next((family for family in FAMILIES if family.config == name), None)
    if family is None:
        raise ValueError(f"a model of a {name} cannot be ported: see port_weights.families.register")
    return family


def detect(names: AbstractSet[str]) -> Scheme | None:
    """Return how a checkpoint names its tensors; None if no member names them so."""
    return next((scheme for family in FAMILIES if (scheme := family.detect(names)) is not None), None)


def landmarks() -> list[tuple[str, str]]:
    """Return each naming and the tensor that it is known by; of one in another's end, the longer first."""
    return list(dict.fromkeys(landmark for family in FAMILIES for landmark in family.landmarks))


def model_types() -> list[str]:
    """Return what `config.json` calls the members."""
    return list(dict.fromkeys(kind for family in reversed(FAMILIES) for kind in family.model_types))
