"""DAB-DETR: anchors, modulation and PReLU, as its authors and Hugging Face name them.

PyTorch's models hold the box head twice, for the decoder moves the anchors with it; Hugging Face's files hold it once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from port_weights.checkpoints import Checkpoint
from port_weights.families.conditional_detr import conditional_attention
from port_weights.families.detr import ACTIVATIONS, FACEBOOK_LAYER, DETRFamily, facebook_transformer
from port_weights.families.resnet import Backbone
from port_weights.families.rows import affine, conv, linear, output_projection, split_attention, split_projections
from port_weights.layouts import VECTOR
from port_weights.tables import Row, Scheme

logger = logging.getLogger(__name__)

_QUERIES = "query_embedding/embeddings"
_SLOPE = "feed_forward/activation/slope"
_BOX_LAYERS = 3
# Hugging Face's projections by what stands behind `self_attn_` or `cross_attn_`.
_SELF = {
    "query_content": "query",
    "key_content": "key",
    "query_pos": "query_position",
    "key_pos": "key_position",
    "value": "value",
}
_CROSS = {**_SELF, "query_pos_sine": "query_sine"}
# Fields of `config.json` and of the configuration.
_SAME_NAME = (
    *("num_patterns", "random_refpoints_xy", "keep_query_pos", "normalize_before"),
    *("temperature_height", "temperature_width"),
)
# What other configurations of transformers have and DAB-DETR's has not, or has and does not read.
_UNKNOWN = (
    *("d_model", "position_embedding_type"),
    *("cls_loss_coefficient", "mask_loss_coefficient", "dice_loss_coefficient"),
)
_WIDTH_OF_AUTHORS = 256
_DEFAULT_DROPOUT = 0.1  # of transformers; the authors' is 0
_SCALE = 2 * math.pi  # of sine positions, here and in the authors' code
PRIOR_PROBABILITY = 0.01  # of a class before training; by transformers' default it depends on their number


def _perceptrons(encoder: str, decoder: str) -> list[Row]:
    """Return rows of what turns anchors into positions and scales them."""
    return [
        *linear(f"{encoder}.query_scale.layers.{{i}}", "encoder/query_scale/layer{i}"),
        *linear(f"{decoder}.query_scale.layers.{{i}}", "decoder/query_scale/layer{i}"),
        *linear(f"{decoder}.ref_point_head.layers.{{i}}", "decoder/reference_point_head/layer{i}"),
        *linear(f"{decoder}.ref_anchor_head.layers.{{i}}", "decoder/reference_anchor_head/layer{i}"),
    ]


def _authors() -> list[Row]:
    """Return the authors' table: Conditional DETR's, but for the queries."""
    attention = conditional_attention(FACEBOOK_LAYER, "self_attn", "cross_attn")
    return [
        *(row for row in facebook_transformer(attention) if row[1] != _QUERIES),
        ("refpoint_embed.weight", _QUERIES, VECTOR),
        ("transformer.patterns.weight", "pattern_embedding/embeddings", VECTOR),
        ("transformer.encoder.layers.{i}.activation.weight", f"encoder/layer{{i}}/{_SLOPE}", VECTOR),
        (f"{FACEBOOK_LAYER}.activation.weight", f"decoder/layer{{i}}/{_SLOPE}", VECTOR),
        *_perceptrons("transformer.encoder", "transformer.decoder"),
    ]


def _hugging_face_attention(name: str, path: str, roles: Mapping[str, str]) -> list[Row]:
    layer = f"decoder.layers.{{i}}.{name}"
    names = {f"{layer}.{name}_{theirs}_proj": role for theirs, role in roles.items()}
    return [
        *output_projection(f"{layer}.{name}.output_proj", f"decoder/layer{{i}}/{path}"),
        *split_projections(names, f"decoder/layer{{i}}/{path}"),
        *affine(f"{layer}.{name}_layer_norm", f"decoder/layer{{i}}/{path}_norm"),
    ]


def _hugging_face() -> list[Row]:
    """Return Hugging Face's table, on disk and in memory alike."""
    return [
        *conv("input_projection", "input_projection"),
        ("query_refpoint_embeddings.weight", _QUERIES, VECTOR),
        ("patterns.weight", "pattern_embedding/embeddings", VECTOR),
        *split_attention("encoder.layers.{i}.self_attn", "encoder/layer{i}/self_attention", "out_proj"),
        *affine("encoder.layers.{i}.self_attn_layer_norm", "encoder/layer{i}/self_attention_norm"),
        *linear("encoder.layers.{i}.fc1", "encoder/layer{i}/feed_forward/hidden"),
        ("encoder.layers.{i}.activation_fn.weight", f"encoder/layer{{i}}/{_SLOPE}", VECTOR),
        *linear("encoder.layers.{i}.fc2", "encoder/layer{i}/feed_forward/output"),
        *affine("encoder.layers.{i}.final_layer_norm", "encoder/layer{i}/feed_forward_norm"),
        *affine("encoder.norm", "encoder/norm"),
        *_hugging_face_attention("self_attn", "self_attention", _SELF),
        *_hugging_face_attention("cross_attn", "cross_attention", _CROSS),
        *linear("decoder.layers.{i}.mlp.fc1", "decoder/layer{i}/feed_forward/hidden"),
        ("decoder.layers.{i}.mlp.activation_fn.weight", f"decoder/layer{{i}}/{_SLOPE}", VECTOR),
        *linear("decoder.layers.{i}.mlp.fc2", "decoder/layer{i}/feed_forward/output"),
        *affine("decoder.layers.{i}.mlp.final_layer_norm", "decoder/layer{i}/feed_forward_norm"),
        *affine("decoder.layernorm", "decoder/norm"),
        *_perceptrons("encoder", "decoder"),
    ]


class DABDETRFamily(DETRFamily):
    """What DAB-DETR differs in."""

    member = "DABDETR"
    config = "DABDETRConfig"
    model_types: ClassVar[tuple[str, ...]] = ("dab-detr",)
    transformers_class = "DabDetrForObjectDetection"
    image_processor = "ConditionalDetrImageProcessor"
    has_no_object = False
    num_queries = 300
    on_disk, in_memory = "dab-hugging-face", "dab-hugging-face-in-memory"
    of_authors, authors = "dab-detr", "IDEA-Research/DAB-DETR"
    activations: ClassVar[tuple[str, ...]] = (*ACTIVATIONS, "prelu")
    activations_of_authors: ClassVar[tuple[str, ...]] = ("prelu", "relu", "gelu")
    hugging_face_heads: ClassVar[list[Row]] = [
        *linear("class_embed", "class_head"),
        *linear("bbox_predictor.layers.{i}", "box_head/layer{i}"),
    ]
    landmarks: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dab-detr", "transformer.encoder.query_scale.layers.0.weight"),
        ("dab-hugging-face-in-memory", "decoder.bbox_embed.layers.0.weight"),
        ("dab-hugging-face", "encoder.query_scale.layers.0.weight"),
    )

    def is_of(self, paths: AbstractSet[str], names: AbstractSet[str], model_type: str | None) -> bool:
        """Whether the decoder modulates its attention by the anchors' sizes."""
        return any(path.startswith("decoder/reference_anchor_head/") for path in paths)

    def tables(self) -> dict[str, list[Row]]:
        """Return the table of the transformer of each naming."""
        return {
            "dab-detr": _authors(),
            "dab-hugging-face": _hugging_face(),
            "dab-hugging-face-in-memory": _hugging_face(),
        }

    def _copies(self, naming: str, prefix: str) -> dict[str, tuple[str, ...]]:
        if naming == self.on_disk:
            return {}
        head, copy = f"{prefix}bbox_embed", f"{prefix}transformer.decoder.bbox_embed"
        if naming == self.in_memory:
            head, copy = f"{prefix.removesuffix('model.')}bbox_predictor", f"{prefix}decoder.bbox_embed"
        ends = [f"layers.{layer}.{kind}" for layer in range(_BOX_LAYERS) for kind in ("weight", "bias")]
        return {f"{head}.{end}": (f"{copy}.{end}",) for end in ends}

    def coefficients_of(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Return what a `config.json` tells of the loss: its `cls_loss_coefficient` is never read there."""
        told = super().coefficients_of(config)
        told.pop("class_loss_coefficient", None)
        return told

    def _from_config(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        scale = config.get("sine_position_embedding_scale")
        if scale is not None and not math.isclose(float(scale), _SCALE, rel_tol=1e-6):
            raise ValueError(f"sine_position_embedding_scale={scale!r}, but here sine positions are scaled to 2π")
        known = {"dropout": _DEFAULT_DROPOUT, **config, "d_model": config.get("hidden_size")}
        own = {name: config[name] for name in _SAME_NAME if config.get(name) is not None}
        return {"activation_function": "prelu", **super()._from_config(known, shapes), **own}

    def _from_tensors(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        told, has_slope = checkpoint.arguments, f"encoder/layer0/{_SLOPE}" in shapes
        return super()._from_tensors(checkpoint, shapes) | {
            "activation_function": "prelu" if has_slope else told.get("transformer_activation", "relu"),
            "num_patterns": shapes.get("pattern_embedding/embeddings", (0,))[0],
            "random_refpoints_xy": bool(told.get("random_refpoints_xy", False)),
            "keep_query_pos": "decoder/layer1/cross_attention/query_position/kernel" in shapes,
            "normalize_before": "encoder/norm/gamma" in shapes,
            "temperature_height": told.get("pe_temperatureH", 20.0),
            "temperature_width": told.get("pe_temperatureW", 20.0),
        }

    def refuse_for_transformers(self, config: Any, backbone: Backbone) -> None:
        """Raise a `ValueError` if transformers has no such model: it has sine positions of whole temperatures alone."""
        super().refuse_for_transformers(config, backbone)
        if config.position_embedding != "sine":
            raise ValueError(
                f"position_embedding={config.position_embedding!r}, but transformers' DAB-DETR has sine positions "
                "alone: export_pth, or a target ending in .pth, keeps it"
            )
        for name in ("temperature_height", "temperature_width"):
            if not float(getattr(config, name)).is_integer():
                raise ValueError(
                    f"{name}={getattr(config, name)!r}, but transformers takes whole numbers alone: export_pth, or a "
                    "target ending in .pth, keeps it"
                )

    def hugging_face_config(self, config: Any, criterion: Any, backbone: Backbone) -> dict[str, Any]:
        """Return what `config.json` says of a model."""
        own = {name: getattr(config, name) for name in _SAME_NAME}
        written = super().hugging_face_config(config, criterion, backbone) | {
            **{name: int(value) if name.startswith("temperature") else value for name, value in own.items()},
            "hidden_size": config.d_model,
            "auxiliary_loss": config.auxiliary_outputs,
            "initializer_bias_prior_prob": PRIOR_PROBABILITY,
        }
        return {name: value for name, value in written.items() if name not in _UNKNOWN}

    def hugging_face_scheme(self, config: Any, backbone: Backbone = "hugging-face") -> Scheme:
        """Return how transformers names the tensors on disk; unlike DETR's, a backbone of timm is not unwrapped."""
        if backbone == "timm":
            return self.scheme("torchvision", self.on_disk, "model.", "model.backbone.conv_encoder.model._backbone.")
        return super().hugging_face_scheme(config, backbone)

    def reference_scheme(self, config: Any) -> Scheme:
        """Return the names of the `state_dict()` of version 5's model."""
        return self.scheme("hugging-face", self.in_memory, "model.", "model.backbone.conv_encoder.model.")

    def authors_arguments(self, config: Any, criterion: Any) -> dict[str, Any]:
        """Return the settings of the authors' `main.py` that say what the model and its loss are."""
        if config.d_model != _WIDTH_OF_AUTHORS:
            logger.warning(
                "d_model=%d: load_model reads this .pth, but the encoder of %s is %d channels wide, whatever is asked",
                *(config.d_model, self.authors, _WIDTH_OF_AUTHORS),
            )
        return super().authors_arguments(config, criterion) | {
            "modelname": "dab_detr",
            "transformer_activation": config.activation_function,
            "num_patterns": config.num_patterns,
            "random_refpoints_xy": config.random_refpoints_xy,
            "pre_norm": config.normalize_before,
            "pe_temperatureH": config.temperature_height,
            "pe_temperatureW": config.temperature_width,
        }
