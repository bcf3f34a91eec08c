"""DETR, as facebookresearch's code and Hugging Face have it: names, settings, `config.json`, training arguments."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from port_weights.checkpoints import Checkpoint
from port_weights.families.family import Family, shapes_by_path, told
from port_weights.families.mask_head import MASK_HEAD, MASK_HEAD_IN_MEMORY
from port_weights.families.resnet import (
    BACKBONES,
    Backbone,
    backbone_from_config,
    backbone_from_tensors,
    find_backbone,
    resnet_json,
    timm_name,
)
from port_weights.families.rows import affine, conv, linear, packed_attention, split_attention
from port_weights.layouts import VECTOR
from port_weights.tables import Row, Scheme, prefixed
from tfdetr_keras.backbones.resnet import RESNETS

logger = logging.getLogger(__name__)


def facebook_transformer(decoder_attention: list[Row]) -> list[Row]:
    """Return the table of the authors' transformer, but for the attentions of a decoder layer."""
    return [
        *conv("input_proj", "input_projection"),
        ("query_embed.weight", "query_embedding/embeddings", VECTOR),
        ("backbone.1.row_embed.weight", "position_embedding/row", VECTOR),
        ("backbone.1.col_embed.weight", "position_embedding/column", VECTOR),
        *packed_attention("transformer.encoder.layers.{i}.self_attn", "encoder/layer{i}/self_attention"),
        *affine("transformer.encoder.layers.{i}.norm1", "encoder/layer{i}/self_attention_norm"),
        *linear("transformer.encoder.layers.{i}.linear1", "encoder/layer{i}/feed_forward/hidden"),
        *linear("transformer.encoder.layers.{i}.linear2", "encoder/layer{i}/feed_forward/output"),
        *affine("transformer.encoder.layers.{i}.norm2", "encoder/layer{i}/feed_forward_norm"),
        *affine("transformer.encoder.norm", "encoder/norm"),
        *affine("transformer.decoder.layers.{i}.norm1", "decoder/layer{i}/self_attention_norm"),
        *affine("transformer.decoder.layers.{i}.norm2", "decoder/layer{i}/cross_attention_norm"),
        *linear("transformer.decoder.layers.{i}.linear1", "decoder/layer{i}/feed_forward/hidden"),
        *linear("transformer.decoder.layers.{i}.linear2", "decoder/layer{i}/feed_forward/output"),
        *affine("transformer.decoder.layers.{i}.norm3", "decoder/layer{i}/feed_forward_norm"),
        *affine("transformer.decoder.norm", "decoder/norm"),
        *decoder_attention,
    ]


FACEBOOK_LAYER = "transformer.decoder.layers.{i}"
FACEBOOK_HEADS: list[Row] = [
    *linear("class_embed", "class_head"),
    *linear("bbox_embed.layers.{i}", "box_head/layer{i}"),
]


def hugging_face_transformer(
    output: str,
    feed_forward: str,
    position: str = "position_embedding",
    decoder_attention: list[Row] | None = None,
) -> list[Row]:
    """Return Hugging Face's table; version 5 renamed two parts in memory but still writes the old names to disk."""
    if decoder_attention is None:
        decoder_attention = [
            *split_attention("decoder.layers.{i}.self_attn", "decoder/layer{i}/self_attention", output),
            *split_attention("decoder.layers.{i}.encoder_attn", "decoder/layer{i}/cross_attention", output),
        ]
    return [
        *conv("input_projection", "input_projection"),
        ("query_position_embeddings.weight", "query_embedding/embeddings", VECTOR),
        (f"{position}.row_embeddings.weight", "position_embedding/row", VECTOR),
        (f"{position}.column_embeddings.weight", "position_embedding/column", VECTOR),
        *split_attention("encoder.layers.{i}.self_attn", "encoder/layer{i}/self_attention", output),
        *affine("encoder.layers.{i}.self_attn_layer_norm", "encoder/layer{i}/self_attention_norm"),
        *linear(f"encoder.layers.{{i}}.{feed_forward}fc1", "encoder/layer{i}/feed_forward/hidden"),
        *linear(f"encoder.layers.{{i}}.{feed_forward}fc2", "encoder/layer{i}/feed_forward/output"),
        *affine("encoder.layers.{i}.final_layer_norm", "encoder/layer{i}/feed_forward_norm"),
        *affine("encoder.layernorm", "encoder/norm"),
        *decoder_attention,
        *affine("decoder.layers.{i}.self_attn_layer_norm", "decoder/layer{i}/self_attention_norm"),
        *affine("decoder.layers.{i}.encoder_attn_layer_norm", "decoder/layer{i}/cross_attention_norm"),
        *linear(f"decoder.layers.{{i}}.{feed_forward}fc1", "decoder/layer{i}/feed_forward/hidden"),
        *linear(f"decoder.layers.{{i}}.{feed_forward}fc2", "decoder/layer{i}/feed_forward/output"),
        *affine("decoder.layers.{i}.final_layer_norm", "decoder/layer{i}/feed_forward_norm"),
        *affine("decoder.layernorm", "decoder/norm"),
    ]


HUGGING_FACE_HEADS: list[Row] = [
    *linear("class_labels_classifier", "class_head"),
    *linear("bbox_predictor.layers.{i}", "box_head/layer{i}"),
]

# Rows stand in a checkpoint behind these, where it is not a bare state_dict of the part.
HUGGING_FACE_MODEL = "model."
DETECTOR_OF_SEGMENTATION = "detr."
PREFIXES = ("", "detr.", "model.", "detr.model.")

# facebookresearch/detr and Hugging Face train with a frozen stem and first stage.
FROZEN = ("stem", "stage1")
DEFAULT_HEADS = 8
DEFAULT_CLASSES = 91
# The names that Hugging Face's config.json and DETRConfig share.
_SAME_NAME = (
    "num_queries",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "activation_function",
    "dropout",
    "attention_dropout",
    "activation_dropout",
)
# DetrConfig's own defaults, which an older config.json may leave out; DETRConfig's follow the paper instead.
_HUGGING_FACE_DEFAULTS = {"attention_dropout": 0.0, "activation_dropout": 0.0}
_HUGGING_FACE_LOSS = {"eos_coefficient": 0.1}  # of all classes there
_CRITERION_NAMES = {
    "class_cost": "cost_class",
    "bbox_cost": "cost_bbox",
    "giou_cost": "cost_giou",
    "bbox_loss_coefficient": "bbox_loss_coefficient",
    "giou_loss_coefficient": "giou_loss_coefficient",
    "mask_loss_coefficient": "mask_loss_coefficient",
    "dice_loss_coefficient": "dice_loss_coefficient",
    # Of one classification each: cross-entropy with "no object", focal loss without.
    "eos_coefficient": "eos_coefficient",
    "cls_loss_coefficient": "class_loss_coefficient",
    "focal_alpha": "focal_alpha",
}
# The same in the training scripts of facebookresearch/detr and Atten4Vis/ConditionalDETR.
_ARGUMENT_NAMES = {
    "set_cost_class": "cost_class",
    "set_cost_bbox": "cost_bbox",
    "set_cost_giou": "cost_giou",
    "bbox_loss_coef": "bbox_loss_coefficient",
    "giou_loss_coef": "giou_loss_coefficient",
    "mask_loss_coef": "mask_loss_coefficient",
    "dice_loss_coef": "dice_loss_coefficient",
    "eos_coef": "eos_coefficient",
    "cls_loss_coef": "class_loss_coefficient",
    "focal_alpha": "focal_alpha",
}
_OF_NO_OBJECT = {"eos_coefficient": True, "class_loss_coefficient": False, "focal_alpha": False}
# Of the loss, transformers 5 takes whole numbers as coefficients, and these as floats, and nothing else.
_FLOAT_COEFFICIENTS = ("eos_coefficient", "focal_alpha")

# The activations that Keras and transformers compute alike under one name; leaky_relu, for one, has another slope.
ACTIVATIONS = ("gelu", "linear", "mish", "relu", "relu6", "sigmoid", "silu", "swish", "tanh")
# What to do with a backbone that timm does not have, by whether it is dilated.
_OTHERWISE = {
    False: "write it with backbone='hugging-face'",
    True: "transformers has no place for one like this; export_pth, or a target ending in .pth, keeps it",
}


class DETRFamily(Family):
    """DETR, and what the members that stand on it share."""

    member = "DETR"
    config = "DETRConfig"
    model_types: ClassVar[tuple[str, ...]] = ("detr",)
    transformers_class = "DetrForObjectDetection"
    num_queries = 100  # where a checkpoint has none
    on_disk, in_memory, of_authors = "hugging-face", "hugging-face-in-memory", "facebookresearch"
    prefix = ""  # of a detector inside of another model
    authors = "facebookresearch/detr"
    activations: ClassVar[tuple[str, ...]] = ACTIVATIONS  # that transformers computes alike
    activations_of_authors: ClassVar[tuple[str, ...]] = ("relu",)
    hugging_face_heads: ClassVar[list[Row]] = HUGGING_FACE_HEADS
    has_masks = False
    first_projection = "input_projection/kernel"  # from the backbone's channels to the transformer's
    # A tensor that tells each naming from those that come after it.
    landmarks: ClassVar[tuple[tuple[str, str], ...]] = (
        ("facebookresearch", "transformer.decoder.layers.0.linear1.weight"),
        ("hugging-face-4", "backbone.position_embedding.row_embeddings.weight"),
        ("hugging-face", "decoder.layers.0.fc1.weight"),
        ("hugging-face-in-memory", "decoder.layers.0.mlp.fc1.weight"),
    )

    def tables(self) -> dict[str, list[Row]]:
        """Return the table of the transformer of each naming."""
        return {
            "facebookresearch": facebook_transformer(
                [
                    *packed_attention(f"{FACEBOOK_LAYER}.self_attn", "decoder/layer{i}/self_attention"),
                    *packed_attention(f"{FACEBOOK_LAYER}.multihead_attn", "decoder/layer{i}/cross_attention"),
                ]
            ),
            "hugging-face": hugging_face_transformer(output="out_proj", feed_forward=""),
            # Version 4 kept learned positions, which no other name tells apart, in the backbone.
            "hugging-face-4": hugging_face_transformer("out_proj", "", position="backbone.position_embedding"),
            "hugging-face-in-memory": hugging_face_transformer(output="o_proj", feed_forward="mlp."),
        }

    @functools.cache  # noqa: B019  # there is one record a member
    def scheme(
        self,
        backbone: str = "hugging-face",
        naming: str = "hugging-face",
        model_prefix: str = "",
        backbone_prefix: str = "",
    ) -> Scheme:
        """Put a scheme together from its tables.

        Args:
            backbone: `"hugging-face"` (HF-ResNet names) or `"torchvision"` (also timm's and facebookresearch's).
            naming: one of `tables`, or `"none"` for a backbone alone.
            model_prefix: prefix of transformer and heads, `"detr."` in panoptic checkpoints.
            backbone_prefix: the whole prefix of the backbone's tensors.
        """
        rows = prefixed(BACKBONES[backbone], backbone_prefix)
        rows += MASK_HEAD_IN_MEMORY if naming.endswith("in-memory") else MASK_HEAD
        if naming == "none":
            return Scheme(f"{backbone} backbone", tuple(rows))
        heads, heads_prefix = FACEBOOK_HEADS, model_prefix
        if "hugging-face" in naming:
            heads, heads_prefix = self.hugging_face_heads, model_prefix.removesuffix(HUGGING_FACE_MODEL)
        rows += prefixed(self.tables()[naming], model_prefix) + prefixed(heads, heads_prefix)
        copies = self._copies(naming, model_prefix)
        return Scheme(f"{naming}, {backbone} backbone", tuple(rows), copies)

    def _copies(self, naming: str, prefix: str) -> dict[str, tuple[str, ...]]:
        """Return the tensors that a naming holds more than once, and their other names, see `Scheme`."""
        return {}

    def detect(self, names: AbstractSet[str]) -> Scheme | None:
        """Return how a checkpoint names its tensors: by a few that only this naming has."""
        backbone, backbone_prefix = find_backbone(names)
        for naming, landmark in self.landmarks:
            for prefix in PREFIXES:
                if backbone and prefix + landmark in names:
                    return self.scheme(backbone, naming, prefix, backbone_prefix)
        return None

    def architecture(self, checkpoint: Checkpoint, scheme: Scheme) -> dict[str, Any]:
        """Return the fields of the configuration, from `config.json` or else from the tensors' shapes."""
        shapes, config = shapes_by_path(checkpoint, scheme), checkpoint.config or {}
        if "d_model" in config or config.get("model_type") in self.model_types:
            return self._from_config(config, shapes)
        return self._from_tensors(checkpoint, shapes)

    def coefficients(self, checkpoint: Checkpoint) -> dict[str, float]:
        """Return the loss that `config.json` describes, or else the training arguments do."""
        config = checkpoint.config or {}
        if "d_model" in config or config.get("model_type") in self.model_types:
            return self.coefficients_of(config)
        return self._told_under(_ARGUMENT_NAMES, checkpoint.arguments)

    def coefficients_of(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Return what a `config.json` tells of the loss."""
        return self._told_under(_CRITERION_NAMES, {**_HUGGING_FACE_LOSS, **config})

    def _told_under(self, names: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, float]:
        return {ours: float(value) for ours, value in told(names, settings) if self._is_used(ours)}

    def _is_used(self, coefficient: str) -> bool:
        return _OF_NO_OBJECT.get(coefficient, self.has_no_object) == self.has_no_object

    def _from_config(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        given = {name: config[name] for name in _SAME_NAME if config.get(name) is not None}
        # transformers leaves the key out for its default of two classes.
        names = config.get("id2label")
        classes = len(names) if names and isinstance(names, Mapping | list) else int(config.get("num_labels", 2))
        return {
            "backbone": dataclasses.asdict(backbone_from_config(config, shapes)),
            "num_classes": classes,
            "id2label": config.get("id2label") or None,
            "position_embedding": config.get("position_embedding_type", "sine"),
            "frozen": FROZEN,
            **_HUGGING_FACE_DEFAULTS,
            **given,
        }

    def _from_tensors(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        backbone = dataclasses.replace(backbone_from_tensors(shapes), dilation=_dilation_of(checkpoint))
        fields = {"backbone": dataclasses.asdict(backbone), "num_classes": DEFAULT_CLASSES, "frozen": FROZEN}
        if self.first_projection not in shapes:
            return fields

        def depth(part: str) -> int:
            found = {int(match[1]) for path in shapes if (match := re.match(rf"{part}/layer(\d+)/", path))}
            if found != set(range(len(found))):
                raise ValueError(f"{checkpoint.name}: of the {part}'s layers only {sorted(found)[:8]} are there")
            return len(found)

        def needed(path: str) -> int:
            if not shapes.get(path):
                raise ValueError(
                    f"{checkpoint.name}: the tensor for {path} is missing: the architecture cannot be told"
                )
            return shapes[path][0]

        heads = int(checkpoint.arguments.get("nheads", DEFAULT_HEADS))
        queries = shapes.get("query_embedding/embeddings") or (self.num_queries,)
        return fields | {
            "num_queries": queries[0],
            "d_model": needed(self.first_projection),
            "encoder_layers": depth("encoder"),
            "decoder_layers": depth("decoder"),
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
            "encoder_ffn_dim": needed("encoder/layer0/feed_forward/hidden/kernel"),
            "decoder_ffn_dim": needed("decoder/layer0/feed_forward/hidden/kernel"),
            "position_embedding": "learned" if "position_embedding/row" in shapes else "sine",
        }

    def refuse_for_transformers(self, config: Any, backbone: Backbone) -> None:
        """Raise a `ValueError` if transformers has no such backbone, or another activation of that name."""
        if config.activation_function not in self.activations:
            raise ValueError(
                f"activation_function={config.activation_function!r} is not known to be the same in transformers; "
                f"only models with {', '.join(self.activations)} can be exported there"
            )
        known = timm_name(config.backbone)
        if backbone == "timm" and known is None:
            raise ValueError(
                f"timm has no ResNet of depths {config.backbone.depths} and channels {config.backbone.channels}, "
                f"only {', '.join(RESNETS)}: {_OTHERWISE[config.backbone.dilation]}"
            )
        if backbone == "hugging-face" and config.backbone.dilation:
            raise ValueError(
                "the backbone's last stage is dilated (DC5), which Hugging Face's own ResNet cannot be: "
                + (f"write it with backbone='timm', as {known} there" if known else _OTHERWISE[True])
            )

    def refuse_for_authors(self, config: Any) -> None:
        """Raise a `ValueError` for settings that the authors' code lacks: two for one of its, another activation."""
        for what in ("attention_heads", "ffn_dim"):
            ours = getattr(config, f"encoder_{what}"), getattr(config, f"decoder_{what}")
            if ours[0] != ours[1]:
                raise ValueError(
                    f"encoder_{what}={ours[0]} and decoder_{what}={ours[1]}, but {self.authors} has one "
                    "setting for both: export a Hugging Face folder instead"
                )
        if config.activation_function not in self.activations_of_authors:
            raise ValueError(
                f"activation_function={config.activation_function!r}, but {self.authors} has "
                f"{', '.join(self.activations_of_authors)} alone: export a Hugging Face folder instead"
            )

    def is_unknown_to_torchvision(self, config: Any) -> bool:
        """Whether torchvision has no such ResNet."""
        is_dilated = config.backbone.dilation and config.backbone.block == "basic"
        return timm_name(config.backbone) is None or is_dilated

    def hugging_face_config(self, config: Any, criterion: Any, backbone: Backbone) -> dict[str, Any]:
        """Return what `config.json` says of a model, for versions 4 and 5 of transformers."""
        names = config.names
        coefficients = {} if criterion is None else self._told_as(criterion, _CRITERION_NAMES)
        return {
            "model_type": self.model_types[0],
            "architectures": [self.transformers_class],
            **{name: getattr(config, name) for name in _SAME_NAME},
            "position_embedding_type": config.position_embedding,
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
            **{
                name: value if name in _FLOAT_COEFFICIENTS else int(value)
                for name, value in coefficients.items()
                if name in _FLOAT_COEFFICIENTS or value.is_integer()
            },
            # Hugging Face's auxiliary outputs normalise each layer's input once too often, which changes the last, too.
            "auxiliary_loss": False,
            "dilation": config.backbone.dilation,
            "use_timm_backbone": backbone == "timm",
            "use_pretrained_backbone": False,  # or version 4 fetches ImageNet's weights first
            "backbone": timm_name(config.backbone) if backbone == "timm" else None,
            "backbone_config": None if backbone == "timm" else resnet_json(config.backbone),
        }

    def _told_as(self, criterion: Any, names: Mapping[str, str]) -> dict[str, float]:
        return {name: float(getattr(criterion, ours)) for name, ours in names.items() if self._is_used(ours)}

    def hugging_face_scheme(self, config: Any, backbone: Backbone = "hugging-face") -> Scheme:
        """Return how transformers names the tensors on disk: version 5; and 4, but for learned positions."""
        prefix = self.prefix + HUGGING_FACE_MODEL
        names = "torchvision" if backbone == "timm" else "hugging-face"
        return self.scheme(names, self._on_disk(config), prefix, f"{prefix}backbone.conv_encoder.model.")

    def _on_disk(self, config: Any) -> str:
        return self.on_disk

    def reference_scheme(self, config: Any) -> Scheme:
        """Return the names of the `state_dict()` of version 5's model."""
        prefix = self.prefix + HUGGING_FACE_MODEL
        return self.scheme("hugging-face", self.in_memory, prefix, f"{prefix}backbone.model.")

    def authors_scheme(self, config: Any) -> Scheme:
        """Return how the authors' code names the tensors."""
        return self.scheme("torchvision", self.of_authors, self.prefix, f"{self.prefix}backbone.0.body.")

    def authors_arguments(self, config: Any, criterion: Any) -> dict[str, Any]:
        """Return the settings of the authors' `main.py` that say what the model and its loss are."""
        return {
            "backbone": timm_name(config.backbone),
            "dilation": config.backbone.dilation,
            "position_embedding": config.position_embedding,
            "enc_layers": config.encoder_layers,
            "dec_layers": config.decoder_layers,
            "dim_feedforward": config.encoder_ffn_dim,
            "hidden_dim": config.d_model,
            "dropout": config.dropout,
            "nheads": config.encoder_attention_heads,
            "num_queries": config.num_queries,
            "pre_norm": config.pre_norm,
            "masks": self.has_masks,
            "aux_loss": config.auxiliary_outputs,
            **self._told_as(criterion, _ARGUMENT_NAMES),
        }


def _dilation_of(checkpoint: Checkpoint) -> bool:
    if "dilation" in checkpoint.arguments:
        return bool(checkpoint.arguments["dilation"])
    if "dc5" in checkpoint.name.lower().rsplit("/", 1)[-1]:
        logger.warning("%s: taken for a dilated (DC5) model because of its name", checkpoint.name)
        return True
    return False
