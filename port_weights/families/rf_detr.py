"""RF-DETR, as its package and Hugging Face have it: what it differs in from LW-DETR."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from port_weights.checkpoints import Checkpoint
from port_weights.families.family import told
from port_weights.families.lw_detr import (
    FIELDS,
    HEADS,
    MODEL,
    SCALE,
    TRUNK,
    WINDOWS,
    Count,
    GroupDETRFamily,
    Needed,
    refuse_others,
)
from port_weights.families.lw_detr_names import dinov2_rows, side_of_table
from port_weights.families.resnet import Backbone
from port_weights.tables import Row, Scheme
from tfdetr_keras.backbones.dinov2 import DINOv2Config

logger = logging.getLogger(__name__)

_OF_AUTHORS = "backbone.0.encoder.encoder.embeddings.cls_token"
_OF_HUGGING_FACE = "backbone.backbone.embeddings.cls_token"
_ALWAYS_OF_BACKBONE = {
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "num_channels": 3,
    "use_swiglu_ffn": False,
    "apply_layernorm": True,
    "use_mask_token": True,
}
_BACKBONE = {  # of its backbone_config, and of ours
    "patch_size": "patch_size",
    "num_windows": "windows",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "out_indices": "taps",
    "layerscale_value": "layer_scale",
    "drop_path_rate": "drop_path",
}
# What no shape tells of the package's backbones, by the side of a patch.
_PUBLISHED: dict[int, dict[str, Any]] = {
    12: {"windows": 2, "taps": (3, 6, 9, 12)},
    14: {"windows": 4, "taps": (2, 5, 8, 11)},
    16: {"windows": 2, "taps": (3, 6, 9, 12)},
}
_CHANNELS_OF_HEAD = 64
CLASS_NAMES, VERSION = "class_names", "rfdetr_version"
FIRST_LOOP = "vit_encoder_num_layers"  # an argument of the package's first training loop alone
UNUSED = "N/A"  # the name of an output that no class has
_DROPOUT_OF_TRANSFORMERS = 0.1  # its default, which nobody chose: the package trains with 0


class RFDETRFamily(GroupDETRFamily):
    """RF-DETR, the detector."""

    member = "RFDETR"
    config = "RFDETRConfig"
    model_types: ClassVar[tuple[str, ...]] = ("rf_detr",)
    transformers_class = "RfDetrForObjectDetection"
    image_processor = "RfDetrImageProcessor"
    landmarks: ClassVar[tuple[tuple[str, str], ...]] = (
        ("rf-detr", _OF_AUTHORS),  # roboflow/rf-detr
        ("rf-detr-hugging-face", _OF_HUGGING_FACE),
    )
    fields: ClassVar[Mapping[str, str]] = {
        theirs: ours for theirs, ours in FIELDS.items() if theirs != "projector_scale_factors"
    }
    is_batch_norm, of_disk = False, False
    authors = backbones_of_authors = "roboflow/rf-detr"

    def detect(self, names: AbstractSet[str]) -> Scheme | None:
        """Return how a checkpoint names its tensors: by a few that only this naming has."""
        if _OF_AUTHORS in names:
            return self.scheme_of("authors", names=names)
        if MODEL + _OF_HUGGING_FACE in names:
            return self.scheme_of("memory", names=names)
        return None

    def backbone_rows(self, naming: str, prefix: str) -> list[Row]:
        """Return rows of the backbone."""
        if naming == "authors":
            return dinov2_rows(is_in_memory=False, prefix=f"{prefix}encoder.")
        return dinov2_rows(is_in_memory=True, prefix=f"{MODEL}{TRUNK}")

    def _from_config(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        levels = config.get("num_feature_levels", 1)
        if levels != 1:
            raise ValueError(f"num_feature_levels={levels!r}, but here it is 1 alone")
        fields = super()._from_config(config, shapes)
        if fields.get("dropout") == _DROPOUT_OF_TRANSFORMERS:
            logger.info("config.json says dropout=0.1, which is transformers' default: 0 is taken, as its authors do")
            fields["dropout"] = 0.0
        return fields

    def _backbone_from_config(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        refuse_others(config, _ALWAYS_OF_BACKBONE, "backbone_config.")
        fields = dict(told(_BACKBONE, config))
        table = shapes.get("backbone/embeddings/positions/table")
        if table:
            fields["table_side"] = side_of_table(table[1])
        return dataclasses.asdict(DINOv2Config(**fields))

    def _backbone_from_tensors(
        self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], needed: Needed, count: Count
    ) -> dict[str, Any]:
        width, _, patch, _ = needed("backbone/embeddings/projection/kernel")
        rest = dict(_PUBLISHED.get(patch, {}))
        arguments = checkpoint.arguments
        if WINDOWS in arguments:
            rest["windows"] = int(arguments[WINDOWS])
        if "out_feature_indexes" in arguments:
            rest["taps"] = tuple(arguments["out_feature_indexes"])
        if not {"windows", "taps"} <= set(rest):
            raise ValueError(
                f"{checkpoint.name}: patches of {patch} pixels are of no published RF-DETR, and no argument in the "
                "file tells its windows (num_windows, out_feature_indexes): give a folder with config.json"
            )
        heads = arguments.get("nheads", arguments.get(HEADS, max(1, width // _CHANNELS_OF_HEAD)))
        rest |= {"layer_scale": arguments[SCALE]} if SCALE in arguments else {}
        return dataclasses.asdict(
            DINOv2Config(
                patch_size=patch,
                width=width,
                depth=count(r"backbone/block(\d+)/"),
                heads=heads,
                table_side=side_of_table(needed("backbone/embeddings/positions/table")[1]),
                drop_path=float(arguments.get("drop_path", 0.0)),
                **rest,
            )
        )

    def refuse_for_transformers(self, config: Any, backbone: Backbone) -> None:
        """Raise a `ValueError` if transformers has no such model, or would compute another one."""
        super().refuse_for_transformers(config, backbone)

    def hugging_face_config(self, config: Any, criterion: Any, backbone: Backbone) -> dict[str, Any]:
        """Return what `config.json` says of a model."""
        content = super().hugging_face_config(config, criterion, backbone) | {
            "num_feature_levels": len(config.projector_scales),
            "layer_norm_eps": 1e-6,
        }
        del content["batch_norm_eps"]
        return content

    def _backbone_config(self, config: Any) -> dict[str, Any]:
        backbone = config.backbone
        written = {theirs: getattr(backbone, ours) for theirs, ours in _BACKBONE.items()}
        return {
            "model_type": "rf_detr_dinov2",
            **{name: list(value) if isinstance(value, tuple) else value for name, value in written.items()},
            **_ALWAYS_OF_BACKBONE,
            "image_size": backbone.table_side * backbone.patch_size,
        }

    def _indexes(self, config: Any) -> tuple[int, ...]:
        return tuple(config.backbone.taps)

    def authors_arguments(self, config: Any, criterion: Any) -> dict[str, Any]:
        """Return the arguments of the package's training that say what the model and its loss are."""
        backbone = config.backbone
        return super().authors_arguments(config, criterion) | {
            "patch_size": backbone.patch_size,
            "positional_encoding_size": backbone.table_side,
            "drop_path": backbone.drop_path,
            "num_classes": config.num_classes - 1,  # the package makes one output more
            CLASS_NAMES: list(config.names.values()),
        }

    def _from_tensors(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super()._from_tensors(checkpoint, shapes) | {"id2label": self._names(checkpoint, shapes)}

    def _names(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> list[str] | None:
        """Return the names of the outputs; None where the training arguments name none, or not which is which.

        The package trains one output more than there are classes. Since version 1.7 it writes which it is, and the
        first class is the first output; those that trained by a loop of their own answered with the second.
        """
        arguments = checkpoint.arguments
        names, outputs = arguments.get(CLASS_NAMES), shapes.get("class_head/kernel", (0,))[0]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            return None
        spare, first = outputs - len(names), 0
        is_told = spare == 0 or (spare == 1 and VERSION in arguments)
        if not is_told and FIRST_LOOP in arguments and VERSION not in arguments:
            is_told, first = spare in (1, 2), 1
        if not is_told:
            if outputs:
                logger.warning(
                    "%s: class_names are %d names, of a head of %d outputs, and which is whose is not told: say with "
                    "id2label what the outputs are",
                    *(checkpoint.name, len(names), outputs),
                )
            return None
        return [UNUSED] * first + names + [UNUSED] * (spare - first)
