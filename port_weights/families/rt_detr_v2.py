"""RT-DETRv2, as its authors and Hugging Face have it: what it differs in from RT-DETR."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from port_weights.checkpoints import Checkpoint
from port_weights.families.resnet import Backbone
from port_weights.families.rt_detr import SCALES, RTDETRFamily, is_second_version
from port_weights.families.rt_detr_names import points_of
from port_weights.families.rt_detr_settings import FIELDS
from port_weights.families.trunks import HGNET, RESNET_VD, Trunk

logger = logging.getLogger(__name__)

_METHOD, _METHODS = "cross_attn_method", {"default": "bilinear", "discrete": "discrete"}
_OFFSET_SCALE = 0.5  # which the authors' decoder cannot be told


class RTDETRV2Family(RTDETRFamily):
    """RT-DETRv2: as many points of each level as it likes, perhaps at whole pixels."""

    member = "RTDETRV2"
    config = "RTDETRV2Config"
    model_types: ClassVar[tuple[str, ...]] = ("rt_detr_v2",)
    transformers_class = "RTDetrV2ForObjectDetection"
    fields: ClassVar[Mapping[str, str]] = {**FIELDS, "decoder_offset_scale": "offset_scale"}
    authors = backbones_of_authors = "lyuwenyu/RT-DETR, rtdetrv2_pytorch"
    projection, output = ("conv", "norm"), ("proj", "norm")
    has_both_heads, keeps_points = True, True
    trunks: ClassVar[tuple[Trunk, ...]] = (RESNET_VD, HGNET)

    def is_of(self, paths: AbstractSet[str], names: AbstractSet[str], model_type: str | None) -> bool:
        """Whether it is called so, or nothing is said and something is of the second version."""
        return model_type in self.model_types or (model_type is None and is_second_version(names))

    def _from_config(
        self, title: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Any]:
        fields = super()._from_config(title, config, shapes)
        method = config.get("decoder_method", "default")
        if method not in _METHODS:
            raise ValueError(f"decoder_method={method!r}, but here it is one of {', '.join(_METHODS)}")
        levels = config.get("num_feature_levels", 3)
        if config.get("decoder_n_levels", levels) != levels:
            raise ValueError(
                f"decoder_n_levels={config['decoder_n_levels']!r}, but here the decoder looks at all "
                f"num_feature_levels={levels}"
            )
        points = fields.get("decoder_points")
        if isinstance(points, list | tuple) and len(set(points)) == 1:
            fields["decoder_points"] = points[0]
        return fields | {"sampling": _METHODS[method]}

    def _from_tensors(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        method = checkpoint.arguments.get(f"{self.decoder_there}.{_METHOD}")
        if method is None and "dsp" in checkpoint.name.lower().rsplit("/", 1)[-1]:
            logger.warning("%s: discrete sampling, as its name says (dsp); no tensor tells", checkpoint.name)
            method = "discrete"
        return super()._from_tensors(checkpoint, shapes) | {"sampling": _METHODS[method or "default"]}

    def _points(
        self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], heads: int, levels: int
    ) -> int | tuple[int, ...]:
        """Return the points of each level, which some files keep beside the weights, one by their number for each."""
        kept = next((name for name in checkpoint.shapes if SCALES.fullmatch(name)), None)
        if kept is None:
            return super()._points(checkpoint, shapes, heads, levels)
        scales, points = [round(1 / scale) for scale in checkpoint.read(kept)], []
        while scales:
            points.append(scales[0])
            scales = scales[scales[0] :]
        weights = shapes["decoder/layer0/cross_attention/attention_weights/kernel"][0]
        if len(points) != levels or heads * sum(points) != weights:
            raise ValueError(
                f"{checkpoint.name}: {kept} tells of {points} points, but there are {weights} attention weights of "
                f"{heads} heads on {levels} levels: say how many heads there are (heads)"
            )
        return points[0] if len(set(points)) == 1 else tuple(points)

    def refuse_for_transformers(self, config: Any, backbone: Backbone) -> None:
        """Raise a `ValueError` if transformers has no such model, or would compute another one."""
        super().refuse_for_transformers(config, backbone)
        if not isinstance(config.decoder_points, int) and len(set(config.decoder_points)) > 1:
            raise ValueError(
                f"decoder_points={config.decoder_points}, but transformers 5 takes one number for all levels: "
                "export_pth, or a target ending in .pth, keeps them"
            )

    def refuse_for_authors(self, config: Any) -> None:
        """Raise a `ValueError` if the authors' code has no such model, or would compute another one."""
        super().refuse_for_authors(config)
        if config.offset_scale != _OFFSET_SCALE:
            raise ValueError(
                f"offset_scale={config.offset_scale}, but {self.authors} has {_OFFSET_SCALE} alone: export a Hugging "
                "Face folder instead"
            )

    def hugging_face_config(self, config: Any, criterion: Any, backbone: Backbone) -> dict[str, Any]:
        """Return what `config.json` says of a model."""
        return super().hugging_face_config(config, criterion, backbone) | {
            "decoder_n_points": points_of(config)[0],
            "decoder_n_levels": config.num_feature_levels,
            "decoder_method": method_of(config),
        }

    def authors_arguments(self, config: Any, criterion: Any) -> dict[str, Any]:
        """Return the settings of the authors' YAML files that say what the model and its loss are."""
        own = {f"{self.decoder_there}.{_METHOD}": method_of(config)}
        return super().authors_arguments(config, criterion) | own


def method_of(config: Any) -> str:
    """Return how the decoder reads the maps, as all call it."""
    return next(theirs for theirs, ours in _METHODS.items() if ours == config.sampling)
