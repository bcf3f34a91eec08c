"""RF-DETR with masks, as its package and Hugging Face have it: what it differs in from the detector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from port_weights.families.lw_detr import MODEL
from port_weights.families.resnet import Backbone
from port_weights.families.rf_detr import RFDETRFamily
from port_weights.families.rows import affine, conv, linear
from port_weights.layouts import VECTOR, Layout
from port_weights.tables import Row, Scheme, prefixed

# Conv2d of groups of one channel (channels, 1, height, width) ↔ DepthwiseConv2D (height, width, channels, 1)
_DEPTHWISE = Layout(lambda tensor, shape: tensor.transpose(2, 3, 0, 1), lambda array: array.transpose(2, 3, 0, 1))
_OF_AUTHORS, _OF_HUGGING_FACE = "segmentation_head.bias", "segmentation_bias"
_CRITERION = {
    "mask_class_loss_coefficient": "mask_loss_coefficient",
    "mask_dice_loss_coefficient": "dice_loss_coefficient",
}
_ALWAYS = {"mask_downsample_ratio": 4, "segmentation_head_activation_function": "gelu"}


def _rows(is_in_memory: bool) -> list[Row]:
    """Return rows of the head for masks: of the authors, who are transformers' disk, too, or in its memory."""
    if is_in_memory:
        before, bias, block = "", _OF_HUGGING_FACE, ("depthwise_conv", "layernorm", "pointwise_conv")
        of_queries = ("norm", "mlp.fc1", "mlp.fc2")
    else:
        before, bias, block = "segmentation_head.", _OF_AUTHORS, ("dwconv", "norm", "pwconv1")
        of_queries = ("norm_in", "layers.0", "layers.2")
    depthwise, norm, pointwise = (f"{before}blocks.{{i}}.{part}" for part in block)
    query_norm, hidden, output = (f"{before}query_features_block.{part}" for part in of_queries)
    ours = "segmentation_head/block{i}"
    return [
        (f"{depthwise}.weight", f"{ours}/depthwise/kernel", _DEPTHWISE),
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
        if _OF_HUGGING_FACE in names:
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
        found = super().coefficients_of(config)
        return found | {ours: float(config[theirs]) for theirs, ours in _CRITERION.items() if theirs in config}

    def hugging_face_config(self, config: Any, criterion: Any, backbone: Backbone) -> dict[str, Any]:
        """Return what `config.json` says of a model."""
        of_loss = {} if criterion is None else _CRITERION
        return {
            **super().hugging_face_config(config, criterion, backbone),
            **{theirs: float(getattr(criterion, ours)) for theirs, ours in of_loss.items()},
            **_ALWAYS,
            "intermediate_size": 4 * config.d_model,
        }
