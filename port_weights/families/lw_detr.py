"""LW-DETR, as its authors and Hugging Face have it: settings, `config.json`, training arguments.

What RF-DETR differs in is in `rf_detr`.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from port_weights.checkpoints import Checkpoint
from port_weights.families.family import Family, shapes_by_path, told
from port_weights.families.lw_detr_names import (
    decoder_rows_of_authors,
    decoder_rows_of_hugging_face,
    heads,
    lw_vit_rows_of_authors,
    lw_vit_rows_of_hugging_face,
    projector_rows_of_authors,
    projector_rows_of_hugging_face,
    side_of_table,
)
from port_weights.families.resnet import Backbone
from port_weights.families.rows import batch_counters
from port_weights.tables import Row, Scheme, held
from tfdetr_keras.backbones.lw_vit import LWViTConfig

logger = logging.getLogger(__name__)

Needed = Callable[[str], tuple[int, ...]]  # path → shape of what must be there
Count = Callable[[str], int]  # pattern → how many of a kind there are

MODEL, TRUNK = "model.", "backbone.backbone."  # before transformers' tensors, and of them before the backbone's
_WIDE = re.compile(r".*(stages_sampling\.\d+\.\d+|sampling_layers\.\d+\.layers)\.1\.weight")
_OF_AUTHORS, _OF_HUGGING_FACE = "backbone.0.encoder.pos_embed", "backbone.backbone.encoder.layer.0.gamma_1"

FIELDS = {  # of config.json, and of ours
    "d_model": "d_model",
    "num_queries": "num_queries",
    "projector_scale_factors": "projector_scales",
    "hidden_expansion": "expansion",
    "c2f_num_blocks": "projector_blocks",
    "decoder_layers": "decoder_layers",
    "decoder_self_attention_heads": "self_attention_heads",
    "decoder_cross_attention_heads": "cross_attention_heads",
    "decoder_ffn_dim": "decoder_ffn_dim",
    "decoder_activation_function": "decoder_activation",
    "decoder_n_points": "decoder_points",
    "group_detr": "groups",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "auxiliary_loss": "auxiliary_outputs",
}
_CRITERION = {
    "class_cost": "cost_class",
    "bbox_cost": "cost_bbox",
    "giou_cost": "cost_giou",
    "class_loss_coefficient": "class_loss_coefficient",
    "bbox_loss_coefficient": "bbox_loss_coefficient",
    "giou_loss_coefficient": "giou_loss_coefficient",
    "focal_alpha": "focal_alpha",
}
# What is one thing here, and may be another in a config.json.
_ALWAYS = {"activation_function": "silu", "batch_norm_eps": 1e-5, "attention_bias": True}
_ALWAYS_OF_BACKBONE = {
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "num_channels": 3,
    "use_absolute_position_embeddings": True,
}
_BACKBONE = {  # of its backbone_config, and of ours
    "patch_size": "patch_size",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "out_indices": "taps",
    "window_block_indices": "windowed",
    "cae_init_values": "layer_scale",
}
# Of the authors' training scripts, and of ours.
ARGUMENTS = {
    "num_queries": "num_queries",
    "group_detr": "groups",
    "dec_layers": "decoder_layers",
    "sa_nheads": "self_attention_heads",
    "ca_nheads": "cross_attention_heads",
    "dec_n_points": "decoder_points",
    "aux_loss": "auxiliary_outputs",
}
# The authors' one dropout, and those of ours that it is.
_DROPOUT, _DROPOUTS = "dropout", ("dropout", "attention_dropout", "activation_dropout")
# This package's own arguments, of the backbone: what no shape tells, and the authors' scripts have no name for.
HEADS, SCALE = "vit_encoder_num_heads", "vit_encoder_layer_scale"
RESOLUTION, WINDOWS = "resolution", "num_windows"  # names of RF-DETR's, of which LW-DETR's authors have none
_ARGUMENTS_OF_LOSS = {
    "set_cost_class": "cost_class",
    "set_cost_bbox": "cost_bbox",
    "set_cost_giou": "cost_giou",
    "cls_loss_coef": "class_loss_coefficient",
    "bbox_loss_coef": "bbox_loss_coefficient",
    "giou_loss_coef": "giou_loss_coefficient",
    "focal_alpha": "focal_alpha",
}
SCALES = {"P3": 2.0, "P4": 1.0, "P5": 0.5}  # of the authors' arguments, by the strides they stand for
# What no shape tells of the authors' backbones, by width and depth.
_PUBLISHED: dict[tuple[int, int], dict[str, Any]] = {
    (192, 6): {"windowed": (0, 2, 4), "taps": (2, 4, 6)},
    **{(width, 10): {"windowed": (0, 1, 3, 6, 7, 9), "taps": (3, 5, 6, 10)} for width in (192, 384, 768)},
}
_HEADS_OF_VIT, _WINDOWS = 12, 4
_FROZEN = "freeze_batch_norm"


class GroupDETRFamily(Family):
    """What LW-DETR and RF-DETR share: projector, groups of queries, decoder."""

    has_no_object = False
    is_batch_norm: ClassVar[bool]  # whether the projector's convolutions are normalised over the batch
    fields: ClassVar[Mapping[str, str]]
    of_disk: ClassVar[bool]  # whether transformers writes its own names to disk, rather than the authors'
    authors: ClassVar[str]
    fields_of_heads: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def backbone_rows(self, naming: str, prefix: str) -> list[Row]:
        """Return rows of the backbone: of "authors", or of "disk" or "memory" of transformers."""

    def scheme_of(self, naming: str, wide: bool = False, names: Iterable[str] | None = None) -> Scheme:
        """Return a naming.

        Args:
            naming: "authors", or "disk" or "memory" of transformers.
            wide: whether the projector makes maps narrower before they become finer.
            names: of a checkpoint, whose buffers alone are known; all are written where left out.
        """
        rows = self.backbone_rows(naming, "backbone.0.encoder." if naming == "authors" else f"{MODEL}{TRUNK}")
        if naming == "authors":
            rows += projector_rows_of_authors("backbone.0.projector.", self.is_batch_norm, wide)
            rows += decoder_rows_of_authors()
        else:
            rows += projector_rows_of_hugging_face(f"{MODEL}backbone.projector.", self.is_batch_norm, wide)
            rows += decoder_rows_of_hugging_face(MODEL) + heads()
        counters = batch_counters(rows)
        buffers = tuple(counters) if names is None else held(counters, names)
        return Scheme(f"{self.model_types[0]}, {naming}", tuple(rows), buffers=buffers)

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
        return self.coefficients_of_arguments(checkpoint.arguments)

    def coefficients_of_arguments(self, arguments: Mapping[str, Any]) -> dict[str, float]:
        """Return what training arguments tell of the loss."""
        return {ours: float(value) for ours, value in told(_ARGUMENTS_OF_LOSS, arguments)}

    def coefficients_of(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Return what a `config.json` tells of the loss."""
        return {ours: float(value) for ours, value in told(_CRITERION, config)}

    def _from_config(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        refuse_others(config, _ALWAYS, "")
        names = config.get("id2label")
        classes = len(names) if names and isinstance(names, Mapping | list) else int(config.get("num_labels", 2))
        return {
            "backbone": self._backbone_from_config(config.get("backbone_config") or {}, shapes),
            "num_classes": classes,
            "id2label": names or None,
            **dict(told(self.fields, config)),
        }

    @abc.abstractmethod
    def _backbone_from_config(
        self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Any]: ...

    def _from_tensors(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        def needed(path: str) -> tuple[int, ...]:
            if not shapes.get(path):
                raise ValueError(
                    f"{checkpoint.name}: the tensor for {path} is missing: the architecture cannot be told"
                )
            return shapes[path]

        def count(pattern: str) -> int:
            found = {int(match[1]) for path in shapes if (match := re.match(pattern, path))}
            if found != set(range(len(found))):
                raise ValueError(f"{checkpoint.name}: of {pattern} only {sorted(found)[:8]} are there")
            return len(found)

        arguments = checkpoint.arguments
        groups, d_model = count(r"proposals/group(\d+)_projection/"), needed("query_embedding/embeddings")[1]
        rows = needed("query_embedding/embeddings")[0]
        if groups < 1 or rows % groups:
            raise ValueError(f"{checkpoint.name}: {groups} groups cannot share {rows} queries")
        heads_of_cross = int(arguments.get("ca_nheads", 16 * d_model // 256))
        levels = count(r"projector/level(\d+)/c2f/conv1/")
        points = needed("decoder/layer0/cross_attention/attention_weights/kernel")[0]
        if points % (heads_of_cross * levels):
            raise ValueError(
                f"{checkpoint.name}: {heads_of_cross} heads cannot share the {points} attention weights of the decoder"
            )
        scales = [SCALES[name] for name in arguments.get("projector_scale", ()) if name in SCALES]
        return {
            "backbone": self._backbone_from_tensors(checkpoint, shapes, needed, count),
            "num_queries": rows // groups,
            "groups": groups,
            "d_model": d_model,
            "projector_scales": scales or ((1.0,) if levels == 1 else (2.0, 0.5)),
            "projector_blocks": count(r"projector/level0/c2f/block(\d+)_conv1/"),
            "expansion": needed("projector/level0/c2f/block0_conv1/convolution/kernel")[0] / d_model,
            "decoder_layers": count(r"decoder/layer(\d+)/"),
            "decoder_ffn_dim": needed("decoder/layer0/feed_forward/hidden/kernel")[0],
            "decoder_points": points // (heads_of_cross * levels),
            "self_attention_heads": 8 * d_model // 256,
            "cross_attention_heads": heads_of_cross,
            **{ours: value for ours, value in told(ARGUMENTS, arguments) if ours not in ("num_queries", "groups")},
            **{name: arguments[_DROPOUT] for name in _DROPOUTS if _DROPOUT in arguments},
        }

    def image_size(self, checkpoint: Checkpoint) -> tuple[int, int] | None:
        """Return height and width, pixels, of the images that the training arguments name; None where they do not."""
        sides = checkpoint.arguments.get(RESOLUTION)
        if isinstance(sides, list) and len(sides) == 2:
            return int(sides[0]), int(sides[1])
        return (int(sides), int(sides)) if isinstance(sides, int) else None

    def compared_size(self, config: Any) -> tuple[int, int]:
        """Return the usual size, on squares: transformers mixes up height and width in RF-DETR's windows."""
        return config.preprocessing.largest

    @abc.abstractmethod
    def _backbone_from_tensors(
        self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], needed: Needed, count: Count
    ) -> dict[str, Any]: ...

    def refuse_for_transformers(self, config: Any, backbone: Backbone) -> None:
        """Raise a `ValueError` if transformers has no such model, or would compute another one."""
        if backbone == "timm":
            raise ValueError(f"a {self.member} is not written with a backbone of timm: leave backbone out")
        _refuse_folded(config)

    def refuse_for_authors(self, config: Any) -> None:
        """Raise a `ValueError` if the authors' code would compute another model."""
        _refuse_folded(config)
        if config.decoder_activation != "relu":
            raise ValueError(f"decoder_activation={config.decoder_activation!r}, but {self.authors} has 'relu' alone")

    def hugging_face_config(self, config: Any, criterion: Any, backbone: Backbone) -> dict[str, Any]:
        """Return what `config.json` says of a model."""
        names = config.names
        of_loss = {} if criterion is None else _CRITERION
        return {
            "model_type": self.model_types[0],
            "architectures": [self.transformers_class],
            **{theirs: _plain(getattr(config, ours)) for theirs, ours in self.fields.items()},
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
            **{theirs: float(getattr(criterion, ours)) for theirs, ours in of_loss.items()},
            **_ALWAYS,
            "backbone_config": self._backbone_config(config),
        }

    @abc.abstractmethod
    def _backbone_config(self, config: Any) -> dict[str, Any]: ...

    def hugging_face_scheme(self, config: Any, backbone: Backbone = "hugging-face") -> Scheme:
        """Return how transformers names the tensors on disk."""
        return self.scheme_of("disk" if self.of_disk else "authors", is_wide(config))

    def reference_scheme(self, config: Any) -> Scheme:
        """Return the names of the `state_dict()` of version 5's model."""
        return self.scheme_of("memory", is_wide(config))

    def authors_scheme(self, config: Any) -> Scheme:
        """Return how the authors' code names the tensors."""
        return self.scheme_of("authors", is_wide(config))

    def authors_arguments(self, config: Any, criterion: Any) -> dict[str, Any]:
        """Return the arguments of the authors' training script that say what the model and its loss are."""
        if lost := [name for name in _DROPOUTS if getattr(config, name) != config.dropout]:
            logger.warning("%s: %s has one dropout, and is told of %s", ", ".join(lost), self.authors, config.dropout)
        letters = {scale: name for name, scale in SCALES.items()}
        height, width = config.preprocessing.largest
        side = {RESOLUTION: height if height == width else [height, width]}
        return {
            **{theirs: getattr(config, ours) for theirs, ours in ARGUMENTS.items()},
            _DROPOUT: config.dropout,
            **(side if config.preprocessing.rule == "stretch" else {}),
            HEADS: config.backbone.heads,
            WINDOWS: config.backbone.windows,
            SCALE: config.backbone.layer_scale,
            "hidden_dim": config.d_model,
            "dim_feedforward": config.decoder_ffn_dim,
            "projector_scale": [letters[scale] for scale in config.projector_scales],
            "out_feature_indexes": list(self._indexes(config)),
            **{theirs: float(getattr(criterion, ours)) for theirs, ours in _ARGUMENTS_OF_LOSS.items()},
        }

    @abc.abstractmethod
    def _indexes(self, config: Any) -> tuple[int, ...]:
        """Return the taps as the authors count them."""


class LWDETRFamily(GroupDETRFamily):
    """LW-DETR."""

    member = "LWDETR"
    config = "LWDETRConfig"
    model_types: ClassVar[tuple[str, ...]] = ("lw_detr",)
    transformers_class = "LwDetrForObjectDetection"
    image_processor = "DeformableDetrImageProcessor"
    landmarks: ClassVar[tuple[tuple[str, str], ...]] = (
        ("lw-detr", _OF_AUTHORS),  # Atten4Vis/LW-DETR
        ("lw-detr-hugging-face", _OF_HUGGING_FACE),
    )
    fields: ClassVar[Mapping[str, str]] = FIELDS
    is_batch_norm, of_disk = True, True
    authors = backbones_of_authors = "Atten4Vis/LW-DETR"

    def detect(self, names: AbstractSet[str]) -> Scheme | None:
        """Return how a checkpoint names its tensors: by a few that only this naming has."""
        if _OF_AUTHORS in names:
            return self.scheme_of("authors", wide_in(names), names)
        if MODEL + _OF_HUGGING_FACE in names:
            is_in_memory = f"{MODEL}{TRUNK}encoder.layer.0.attention.q_proj.weight" in names
            return self.scheme_of("memory" if is_in_memory else "disk", wide_in(names), names)
        return None

    def backbone_rows(self, naming: str, prefix: str) -> list[Row]:
        """Return rows of the backbone."""
        if naming == "authors":
            return lw_vit_rows_of_authors(prefix)
        return lw_vit_rows_of_hugging_face(naming == "memory", prefix)

    def _backbone_from_config(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        refuse_others(config, _ALWAYS_OF_BACKBONE, "backbone_config.")
        windows = round(float(config.get("num_windows", 16)) ** 0.5)
        fields = {"windows": windows, **dict(told(_BACKBONE, config))}
        table = shapes.get("backbone/embeddings/positions/table")
        if table:
            fields["table_side"] = side_of_table(table[1])
        return dataclasses.asdict(LWViTConfig(**fields))

    def _from_tensors(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        is_frozen = bool(checkpoint.arguments.get(_FROZEN))
        return super()._from_tensors(checkpoint, shapes) | ({"projector_norm": "frozen"} if is_frozen else {})

    def _backbone_from_tensors(
        self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], needed: Needed, count: Count
    ) -> dict[str, Any]:
        width, _, patch, _ = needed("backbone/embeddings/projection/kernel")
        depth = count(r"backbone/block(\d+)/")
        rest = dict(_PUBLISHED.get((width, depth), {}))
        arguments = checkpoint.arguments
        if "window_block_indexes" in arguments:
            rest["windowed"] = tuple(arguments["window_block_indexes"])
        if "out_feature_indexes" in arguments:
            rest["taps"] = tuple(index + 1 for index in arguments["out_feature_indexes"])
        if not {"windowed", "taps"} <= set(rest):
            raise ValueError(
                f"{checkpoint.name}: a ViT of {depth} blocks of {width} channels is none that is published, and no "
                "argument in the file tells which blocks have windows: give a folder with config.json"
            )
        fields: dict[str, Any] = {"patch_size": patch, "width": width, "depth": depth}
        fields["windows"] = arguments.get(WINDOWS, _WINDOWS)
        fields["heads"] = arguments.get("nheads", arguments.get(HEADS, _HEADS_OF_VIT))
        rest |= {"layer_scale": arguments[SCALE]} if SCALE in arguments else {}
        side = side_of_table(needed("backbone/embeddings/positions/table")[1])
        drop_path = float(arguments.get("drop_path", 0.0))
        return dataclasses.asdict(LWViTConfig(**fields, **rest, table_side=side, drop_path=drop_path))

    def _backbone_config(self, config: Any) -> dict[str, Any]:
        backbone = config.backbone
        side = max(config.preprocessing.size)
        return {
            "model_type": "lw_detr_vit",
            **{theirs: _plain(getattr(backbone, ours)) for theirs, ours in _BACKBONE.items()},
            **_ALWAYS_OF_BACKBONE,
            "num_windows": backbone.windows**2,
            "image_size": side + -side % (backbone.windows**3),
            "pretrain_image_size": backbone.table_side * backbone.patch_size,
        }

    def _indexes(self, config: Any) -> tuple[int, ...]:
        return tuple(tap - 1 for tap in config.backbone.taps)

    def authors_arguments(self, config: Any, criterion: Any) -> dict[str, Any]:
        """Return the arguments of the authors' `main.py`."""
        backbone = config.backbone
        return super().authors_arguments(config, criterion) | {
            "vit_encoder_num_layers": backbone.depth,
            "window_block_indexes": list(backbone.windowed),
            _FROZEN: config.projector_norm == "frozen",
            "drop_path": backbone.drop_path,
        }


def refuse_others(config: Mapping[str, Any], always: Mapping[str, Any], before: str) -> None:
    """Raise a `ValueError` if a `config.json` describes what is not made here."""
    for name, only in always.items():
        if config.get(name, only) != only:
            raise ValueError(f"{before}{name}={config[name]!r}, but here it is {only!r} alone")


def _refuse_folded(config: Any) -> None:
    if config.projector_norm == "folded":
        raise ValueError("its batch normalisation is folded, which no PyTorch DETR has: export the original")


def is_wide(config: Any) -> bool:
    """Whether a model's projector makes maps narrower before they become finer."""
    return 2.0 in config.projector_scales and config.backbone.width > 512


def wide_in(names: Iterable[str]) -> bool:
    """Whether a checkpoint's projector does so."""
    return any(_WIDE.fullmatch(name) for name in names)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
