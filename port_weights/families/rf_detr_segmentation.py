"""RF-DETR with masks, as its package and Hugging Face have it: what it differs in from the detector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from port_weights.families.lw_detr import MODEL
from port_weights.families.resnet import Backbone
from port_weights.families.rf_detr import RFDETRFamily
from port_weights.families.rows import affine, conv, linear
from port_weights.layouts import DEPTHWISE, VECTOR
from port_weights.tables import Row, Scheme, prefixed

_OF_AUTHORS, BIAS_OF_MASKS = "segmentation_head.bias", "segmentation_bias"  # the second is transformers'
# Theirs are weights of the loss and of the matching alike, under the names of config.json and of training arguments.
_WEIGHTS = {
    "mask_class_loss_coefficient": ("mask_loss_coefficient", "cost_mask"),
    "mask_dice_loss_coefficient": ("dice_loss_coefficient", "cost_dice"),
}
_WEIGHTS_OF_ARGUMENTS = dict(zip(("mask_ce_loss_coef", "mask_dice_loss_coef"), _WEIGHTS.values(), strict=True))
_POINTS = "mask_point_sample_ratio"
_ALWAYS = {"mask_downsample_ratio": 4, "segmentation_head_activation_function": "gelu"}


def _rows(is_in_memory: bool) -> list[Row]:
    """Return rows of the head for masks: of the authors, who are transformers' disk, too, or in its memory."""
    if is_in_memory:
        before, bias, block = "", BIAS_OF_MASKS, ("depthwise_conv", "layernorm", "pointwise_conv")
        of_queries = ("norm", "mlp.fc1", "mlp.fc2")
    else:
        before, bias, block = "segmentation_head.", _OF_AUTHORS, ("dwconv", "norm", "pwconv1")
        of_queries = ("norm_in", "layers.0", "layers.2")
    depthwise, norm, pointwise = (f"{before}blocks.{{i}}.{part}" for part in block)
    query_norm, hidden, output = (f"{before}query_features_block.{part}" for part in of_queries)
    ours = "segmentation_head/block{i}"
    return [
        (f"{depthwise}.weight", f"{ours}/depthwise/kernel", DEPTHWISE),
        (f"{depthwise}.bias", f"{ours}/depthwise/bias", VECTOR),
        *affine(norm, f"{ours}/norm"),
        *linear(pointwise, f"{ours}/pointwise"),
        *conv(f"{before}spatial_features_proj", "segmentation_head/spatial_projection"),
        *affine(query_norm, "segmentation_head/query_norm"),
        *linear(hidden, "segmentation_head/query_mlp/hidden"),
        *linear(output, "segmentation_head/query_mlp/output"),
        *linear(f"{before}query_features_proj", "segmentation_head/query_projection"),
        (bias, "segmentation_head/bias", VECTOR),
    ]


class RFDETRSegmentationFamily(RFDETRFamily):
    """RF-DETR with masks."""

    member = "RFDETRForSegmentation"
    config = "RFDETRSegmentationConfig"
    transformers_class = "RfDetrForInstanceSegmentation"

    def detect(self, names: AbstractSet[str]) -> Scheme | None:
        """Return how a checkpoint names its tensors: by a few that only this naming has."""
        if _OF_AUTHORS in names:
            return self.scheme_of("authors", names=names)
        if BIAS_OF_MASKS in names:
            return self.scheme_of("memory", names=names)
        return None

    def scheme_of(self, naming: str, wide: bool = False, names: Iterable[str] | None = None) -> Scheme:
        """Return a naming: the detector's, and that of the masks."""
        detector = super().scheme_of(naming, wide, names)
        is_in_memory = naming == "memory"
        # In memory the detector is a part of the whole there.
        rows = prefixed(detector.rows, MODEL if is_in_memory else "") + _rows(is_in_memory)
        return Scheme(f"{detector.title}, with masks", tuple(rows), buffers=detector.buffers)

    def coefficients_of(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Return what a `config.json` tells of the loss."""
        return super().coefficients_of(config) | _of_masks(_WEIGHTS, config)

    def coefficients_of_arguments(self, arguments: Mapping[str, Any]) -> dict[str, float]:
        """Return what training arguments tell of the loss."""
        return super().coefficients_of_arguments(arguments) | _of_masks(_WEIGHTS_OF_ARGUMENTS, arguments)

    def authors_arguments(self, config: Any, criterion: Any) -> dict[str, Any]:
        """Return the arguments of the package's training that say what the model and its loss are."""
        written = _written(_WEIGHTS_OF_ARGUMENTS, criterion)
        return super().authors_arguments(config, criterion) | written | {"segmentation_head": True}

    def hugging_face_config(self, config: Any, criterion: Any, backbone: Backbone) -> dict[str, Any]:
        """Return what `config.json` says of a model."""
        return {
            **super().hugging_face_config(config, criterion, backbone),
            **({} if criterion is None else _written(_WEIGHTS, criterion)),
            **_ALWAYS,
            "intermediate_size": 4 * config.d_model,
        }


def _of_masks(weights: Mapping[str, tuple[str, ...]], settings: Mapping[str, Any]) -> dict[str, float]:
    """Return what settings tell of the loss of masks."""
    found = {ours: float(settings[theirs]) for theirs, both in weights.items() if theirs in settings for ours in both}
    return found | ({"point_ratio": int(settings[_POINTS])} if _POINTS in settings else {})


def _written(weights: Mapping[str, tuple[str, ...]], criterion: Any) -> dict[str, Any]:
    """Return what settings say of the loss of masks."""
    return {
        **{theirs: float(getattr(criterion, of_loss)) for theirs, (of_loss, _) in weights.items()},
        _POINTS: criterion.point_ratio,
    }
