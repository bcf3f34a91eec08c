"""D-FINE, as its authors, DEIM's authors and Hugging Face have it: what it differs in from RT-DETRv2."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from port_weights.checkpoints import Checkpoint
from port_weights.families.dfine_names import (
    NUMBERS,
    OF_AUTHORS,
    OF_HUGGING_FACE,
    PART_OF_AUTHORS,
    PART_OF_HUGGING_FACE,
    rows_of_authors,
    rows_of_hugging_face,
)
from port_weights.families.resnet import Backbone
from port_weights.families.rt_detr import RTDETRFamily
from port_weights.families.rt_detr_names import points_of
from port_weights.families.rt_detr_settings import CRITERION, FIELDS
from port_weights.families.rt_detr_v2 import RTDETRV2Family, method_of
from port_weights.families.trunks import HGNET, Trunk
from port_weights.tables import Row, Scheme
from tfdetr_keras.backbones.hgnet_v2 import HGNETS
from tfdetr_keras.layers.fusion import channels_inside

logger = logging.getLogger(__name__)

# Where these are left out of config.json, transformers has other values than this package.
_UNSAID = {"decoder_n_points": 4, "num_feature_levels": 3, "decoder_layers": 6}
_SIDES = 4
_REPEATED = 3  # times `depth_mult` is the number of RepVGG blocks
_QUALITY_DIM, _UP = 64, 0.5  # which the authors' decoder cannot be told
_EXPANSIONS = (0.34, 0.5, 1.0)  # that are published, of which rounding leaves whole numbers
_POINTS_OF_THREE_LEVELS = (3, 6, 3)
# What is published around a backbone that is alone in its file.
_AROUND: Mapping[str, Mapping[str, Any]] = {
    "hgnet-v2-b0": {"expansion": 0.5, "fusion_blocks": 1, "decoder_layers": 3},
    "hgnet-v2-b2": {"fusion_blocks": 2, "decoder_layers": 4},
    "hgnet-v2-b5": {"encoder_dim": 384, "encoder_ffn_dim": 2048, "reg_scale": 8.0},
}


class DFINEFamily(RTDETRV2Family):
    """D-FINE, and DEIM's models of its network."""

    member = "DFINE"
    config = "DFINEConfig"
    model_types: ClassVar[tuple[str, ...]] = ("d_fine",)
    transformers_class = "DFineForObjectDetection"
    landmarks: ClassVar[tuple[tuple[str, str], ...]] = (
        ("d-fine", PART_OF_AUTHORS),  # Peterande/D-FINE
        ("d-fine-hugging-face", PART_OF_HUGGING_FACE),
    )
    fields: ClassVar[Mapping[str, str]] = {
        **FIELDS,
        "decoder_offset_scale": "offset_scale",
        "max_num_bins": "bins",
        "reg_scale": "reg_scale",
        "up": "up",
        "lqe_hidden_dim": "quality_dim",
    }
    criterion: ClassVar[Mapping[str, str]] = {
        **CRITERION,
        "weight_loss_fgl": "fgl_loss_coefficient",
        "weight_loss_ddf": "ddf_loss_coefficient",
    }
    always: ClassVar[Mapping[str, Any]] = {
        **RTDETRFamily.always,
        "eval_idx": -1,
        "layer_scale": 1,
        "top_prob_values": 4,
        "lqe_layers": 2,
    }
    arguments: ClassVar[Mapping[str, str]] = {
        **RTDETRFamily.arguments,
        "RTDETRTransformer.mlp_act": "mlp_activation",
        "RTDETRTransformer.reg_max": "bins",
        "RTDETRTransformer.reg_scale": "reg_scale",
    }
    arguments_of_loss: ClassVar[Mapping[str, str]] = {
        **RTDETRFamily.arguments_of_loss,
        "SetCriterion.weight_dict.loss_fgl": "fgl_loss_coefficient",
        "SetCriterion.weight_dict.loss_ddf": "ddf_loss_coefficient",
    }
    authors = backbones_of_authors = "Peterande/D-FINE"
    trunks: ClassVar[tuple[Trunk, ...]] = (HGNET,)
    names_of_trunk: ClassVar[tuple[str, ...]] = ("authors",)
    of_authors, of_hugging_face = OF_AUTHORS, OF_HUGGING_FACE
    slug = "d-fine"
    fusion = "encoder/top_down0/fusion1"
    decoder_there, loss_there = "DFINETransformer", "DFINECriterion"
    points_there = "num_points_scale"

    def is_of(self, paths: AbstractSet[str], names: AbstractSet[str], model_type: str | None) -> bool:
        """Whether it is called so, or nothing is said."""
        return model_type is None or model_type in (*self.model_types, HGNET.model_type)

    def _rows_of_authors(self, projection: tuple[str, str], output: tuple[str, str]) -> list[Row]:
        return rows_of_authors(projection, output)

    def _rows_of_hugging_face(self, is_in_memory: bool) -> list[Row]:
        return rows_of_hugging_face(is_in_memory)

    def _detected_of_authors(self, names: AbstractSet[str], backbone: list[Row]) -> Scheme:
        return _with_copies(super()._detected_of_authors(names, backbone))

    def authors_scheme(self, config: Any) -> Scheme:
        """Return how the authors' code names the tensors: the numbers of the decoder lie in two of its modules."""
        return _with_copies(super().authors_scheme(config))

    def architecture(self, checkpoint: Checkpoint, scheme: Scheme) -> dict[str, Any]:
        """Return the fields of the configuration; those of the distances from their tensors.

        `config.json` of the largest published model has another number than its tensor, by which it computes.
        """
        fields = super().architecture(checkpoint, scheme)
        for name in NUMBERS:
            held = scheme.torch_name(f"decoder/{name}")
            if held is not None and held[0] in checkpoint.shapes:
                fields[name] = float(checkpoint.read(held[0]).reshape(-1)[0])
        return fields

    def _from_config(
        self, title: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Any]:
        fields = super()._from_config(title, {**_UNSAID, **config}, shapes)
        return fields | {"fusion_blocks": round(_REPEATED * float(config.get("depth_mult", 1.0)))}

    def _from_tensors(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        fields = super()._from_tensors(checkpoint, shapes)
        if "box_head/layer0/layer2/kernel" in shapes:
            fields["bins"] = shapes["box_head/layer0/layer2/kernel"][0] // _SIDES - 1
        if "quality_head/layer0/layer0/kernel" in shapes:
            fields["quality_dim"] = shapes["quality_head/layer0/layer0/kernel"][0]
        if _is_deim(checkpoint) and f"{self.decoder_there}.mlp_act" not in checkpoint.arguments:
            logger.warning("%s: silu in the decoder, as its name says (deim); no tensor tells", checkpoint.name)
            fields |= {"mlp_activation": "silu", "decoder_activation": "silu"}
        return fields

    def _trains_norm(self, checkpoint: Checkpoint) -> bool:
        return _is_deim(checkpoint)  # in all sizes

    def _around(self, backbone: Any) -> dict[str, Any]:
        plain = dataclasses.replace(backbone, batch_norm="trainable", learnable_affine=False)
        return dict(next((_AROUND[name] for name, known in HGNETS.items() if known == plain and name in _AROUND), {}))

    def _expansion(self, hidden: int, channels: int) -> float:
        usual = (share for share in _EXPANSIONS if channels_inside(channels, share) == hidden)
        return next(usual, 2 * hidden / channels)

    def _points(
        self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], heads: int, levels: int
    ) -> int | tuple[int, ...]:
        points = super()._points(checkpoint, shapes, heads, levels)
        if any(name.endswith("points_scale") for name in checkpoint.shapes):
            return points
        # As many as the published ones have are taken to be distributed as theirs.
        is_published = levels * points == sum(_POINTS_OF_THREE_LEVELS) and levels == len(_POINTS_OF_THREE_LEVELS)
        return _POINTS_OF_THREE_LEVELS if is_published else points

    def refuse_for_transformers(self, config: Any, backbone: Backbone) -> None:
        """Raise a `ValueError` if transformers has no such model, or would compute another one."""
        super(RTDETRV2Family, self).refuse_for_transformers(config, backbone)
        if config.mlp_activation != "relu":
            raise ValueError(
                f"mlp_activation={config.mlp_activation!r}, but transformers has 'relu' alone: export_pth, or a target "
                "ending in .pth, keeps it"
            )

    def _refuse_blocks(self, config: Any) -> None:
        pass  # any number

    def refuse_for_authors(self, config: Any) -> None:
        """Raise a `ValueError` if the authors' code has no such model, or would compute another one."""
        super().refuse_for_authors(config)
        for name, only in (("quality_dim", _QUALITY_DIM), ("up", _UP)):
            if getattr(config, name) != only:
                raise ValueError(
                    f"{name}={getattr(config, name)}, but {self.authors} has {only} alone: export a Hugging Face folder"
                    " instead"
                )

    def _refuse_activations(self, config: Any, who: str) -> None:
        super()._refuse_activations(config, who)
        if config.mlp_activation not in ("gelu", "relu", "silu"):
            raise ValueError(f"mlp_activation={config.mlp_activation!r} is not known to be the same in {who}")

    def hugging_face_config(self, config: Any, criterion: Any, backbone: Backbone) -> dict[str, Any]:
        """Return what `config.json` says of a model."""
        return super(RTDETRV2Family, self).hugging_face_config(config, criterion, backbone) | {
            "decoder_n_points": list(points_of(config)),
            "decoder_method": method_of(config),
            "depth_mult": config.fusion_blocks / _REPEATED,
        }

    def authors_arguments(self, config: Any, criterion: Any) -> dict[str, Any]:
        """Return the settings of the authors' YAML files that say what the model and its loss are."""
        return super().authors_arguments(config, criterion) | {
            "HybridEncoder.depth_mult": config.fusion_blocks / _REPEATED,
            f"{self.decoder_there}.num_points": list(points_of(config)),
        }


def _is_deim(checkpoint: Checkpoint) -> bool:
    return "deim" in checkpoint.name.lower().rsplit("/", 1)[-1]


def _with_copies(scheme: Scheme) -> Scheme:
    copies = {f"decoder.{name}": (f"decoder.decoder.{name}",) for name in NUMBERS}
    return dataclasses.replace(scheme, copies={**scheme.copies, **copies})
