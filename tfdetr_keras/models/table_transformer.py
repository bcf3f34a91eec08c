"""Table Transformer: DETR with normalisation before each branch, trained to find tables and what they are made of.

Source:
    Smock et al. 2022, "PubTables-1M: Towards Comprehensive Table Extraction from Unstructured Documents",
    arXiv:2110.00061.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import keras

from tfdetr_keras.backbones.resnet import RESNETS
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.models.detr import DETR, DETRConfig
from tfdetr_keras.preprocessing import Preprocessing

STRUCTURE = "table-transformer-structure-recognition"
LABELS = ("table", "table rotated")
STRUCTURE_LABELS = (
    "table",
    "table column",
    "table row",
    "table column header",
    "table projected row header",
    "table spanning cell",
)
# microsoft/table-transformer, `src/*_config.json`. Mirrored pages have mirrored text, so nothing is mirrored.
RECIPE = {"learning_rate": 5e-5, "backbone_multiplier": 0.2, "augmentation": "none"}


@dataclasses.dataclass(frozen=True)
class TableTransformerConfig(DETRConfig):
    """The architecture of a `TableTransformer`: a DETR's, each branch of which is normalised before it.

    Source:
        DETR's code, which calls it "pre-norm"; the published models are over ResNet-18.
    """

    pre_norm: ClassVar[bool] = True


def _preset(num_queries: int, side: int, labels: tuple[str, ...]) -> TableTransformerConfig:
    return TableTransformerConfig(
        backbone=RESNETS["resnet-18"],
        num_classes=len(labels),
        num_queries=num_queries,
        id2label=dict(enumerate(labels)),
        preprocessing=Preprocessing((side, side), "table"),
        recipe=RECIPE,
    )


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class TableTransformer(DETR):
    """DETR for documents: tables on pages, and rows, columns and cells of tables.

    Inputs, outputs, targets and methods are those of `DETR`.

    Args:
        config: the architecture.
        criterion: the training loss; by default DETR's with the weight 0.4 for "no object".

    Source:
        Smock et al. 2022, arXiv:2110.00061, section 5 and the authors' configuration.
    """

    config_class: ClassVar[type[DETRConfig]] = TableTransformerConfig
    presets: ClassVar[Mapping[str, DETRConfig]] = {
        "table-transformer-detection": _preset(15, 800, LABELS),
        STRUCTURE: _preset(125, 1000, STRUCTURE_LABELS),
    }
    published: ClassVar[Mapping[str, str]] = {
        **{f"microsoft/{name}": name for name in presets},
        **{f"microsoft/{STRUCTURE}-v1.1-{trained_on}": STRUCTURE for trained_on in ("pub", "fin", "all")},
    }
    title = "Table Transformer"

    @staticmethod
    def default_criterion() -> SetCriterion:
        """Return the loss that the authors train with."""
        return SetCriterion(eos_coefficient=0.4)
