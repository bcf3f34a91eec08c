"""RT-DETR, as its authors' two codes and Hugging Face have it: settings, `config.json`, training arguments.

Hugging Face's heads may lie inside of the decoder, where version 5 writes them, beside it, or in both places. What the
second version differs in is in `rt_detr_v2`.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from port_weights.checkpoints import Checkpoint
from port_weights.families.family import Family, shapes_by_path, told
from port_weights.families.resnet import Backbone
from port_weights.families.resnet_vd import refuse_other_shortcuts
from port_weights.families.rows import batch_counters
from port_weights.families.rt_detr_names import (
    HEADS,
    OF_AUTHORS,
    OF_HUGGING_FACE,
    STRIDES,
    buffers_of_authors,
    copies_of,
    heads,
    points_in_transformers,
    rows_of_authors,
    rows_of_hugging_face,
)
from port_weights.families.rt_detr_settings import (
    ALWAYS,
    ARGUMENTS,
    ARGUMENTS_OF_LOSS,
    CRITERION,
    DROPOUT,
    DROPOUTS,
    ENCODED,
    EVALUATED,
    FIELDS,
    OF_MATCHING,
)
from port_weights.families.trunks import HGNET, RESNET_VD, Trunk, find_trunk, trunk_in_paths, trunk_of
from port_weights.tables import Row, Scheme, held, prefixed
from tfdetr_keras.backbones.resnet import ResNetConfig

logger = logging.getLogger(__name__)

MODEL = "model."  # before all tensors of transformers' detector, but for heads beside the decoder

_ACTIVATIONS = ("gelu", "relu", "silu")  # that all sides compute alike under one name
_BLOCKS = 3  # RepVGG's of each fusion block in transformers
_HEADS_OF_ATTENTION, _QUERIES, _CLASSES = 8, 300, 80
# What is published around a backbone that is alone in its file.
_AROUND: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {
    ("basic", (2, 2, 2, 2)): {"expansion": 0.5, "decoder_layers": 3},
    ("basic", (3, 4, 6, 3)): {"expansion": 0.5, "decoder_layers": 4},
    ("bottleneck", (3, 4, 23, 3)): {"encoder_dim": 384, "encoder_ffn_dim": 2048},
}
# Block, depths, expansion and decoder layers of the one whose authors leave the last layers out.
_EVALUATED_EARLY = ("bottleneck", (3, 4, 6, 3), 0.5, 6)
_DEPTHS_OF_AUTHORS = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
}


class RTDETRFamily(Family):
    """RT-DETR."""

    member = "RTDETR"
    config = "RTDETRConfig"
    model_types: ClassVar[tuple[str, ...]] = ("rt_detr",)
    transformers_class = "RTDetrForObjectDetection"
    image_processor = "RTDetrImageProcessor"
    has_no_object = False
    landmarks: ClassVar[tuple[tuple[str, str], ...]] = (
        ("rt-detr", OF_AUTHORS),  # lyuwenyu/RT-DETR
        ("rt-detr-hugging-face", OF_HUGGING_FACE),
    )
    fields: ClassVar[Mapping[str, str]] = FIELDS
    criterion: ClassVar[Mapping[str, str]] = CRITERION
    authors = backbones_of_authors = "lyuwenyu/RT-DETR, rtdetr_pytorch"
    # The names of convolution and normalisation of the encoder's projections, and of what proposes.
    projection, output = ("0", "1"), ("0", "1")
    has_both_heads, keeps_points = False, False  # of transformers in memory, and of all who write
    trunks: ClassVar[tuple[Trunk, ...]] = (RESNET_VD,)
    names_of_trunk: ClassVar[tuple[str, ...]] = ("rt-detr", "authors")  # the first that there are
    slug = "rt-detr"  # in the titles of namings
    fusion = "encoder/top_down0"  # where the RepVGG blocks of the first fusion are
    decoder_there, loss_there = "RTDETRTransformer", "SetCriterion"  # in the authors' YAML files
    always: ClassVar[Mapping[str, Any]] = ALWAYS
    arguments: ClassVar[Mapping[str, str]] = ARGUMENTS
    arguments_of_loss: ClassVar[Mapping[str, str]] = ARGUMENTS_OF_LOSS
    points_there = "n_points_scale"  # what transformers calls the numbers of points that it keeps beside weights
    # A tensor that each naming is known by.
    of_authors, of_hugging_face = OF_AUTHORS, OF_HUGGING_FACE

    def is_of(self, paths: AbstractSet[str], names: AbstractSet[str], model_type: str | None) -> bool:
        """Whether it is called so, or nothing is said and nothing is of the second version."""
        return model_type in self.model_types or (model_type is None and not is_second_version(names))

    def detect(self, names: AbstractSet[str]) -> Scheme | None:
        """Return how a checkpoint names its tensors: by a few that only this naming has."""
        # Whatever stands on one of them is known; `architecture` refuses what is not made here.
        trunk, whose, before = find_trunk(names, (RESNET_VD, HGNET))
        if self.of_authors in names and not whose and any(name.startswith("backbone.") for name in names):
            raise ValueError(f"a {self.member} over a network that is no {self._kinds()}")
        if self.of_authors in names and whose != "hugging-face":
            return self._detected_of_authors(names, prefixed(trunk.tables[whose or "authors"], before or "backbone."))
        for prefix in (MODEL, ""):
            if prefix + self.of_hugging_face in names and f"{prefix}enc_output.0.weight" in names:
                rows = prefixed(trunk.tables["hugging-face"], before or f"{prefix}backbone.model.")
                return self._detected_of_hugging_face(names, prefix, rows)
        # Nothing but a backbone, and perhaps its classifier.
        is_alone = not any(name.startswith(("encoder.encoder.", "decoder.")) or ".decoder." in name for name in names)
        if whose and trunk is self.trunks[0] and is_alone:
            rows = prefixed(trunk.tables[whose], before)
            title = f"{self.slug}, {whose} backbone alone"
            return Scheme(title, tuple(rows), buffers=held(batch_counters(rows), names))
        return None

    def _kinds(self) -> str:
        kinds = " and no ".join(trunk.title for trunk in self.trunks)
        return f"{kinds}, the only backbone{'s' if len(self.trunks) > 1 else ''} it has here"

    def _detected_of_authors(self, names: AbstractSet[str], backbone: list[Row]) -> Scheme:
        """Return the naming of either of the authors' codes, or of a file between the two."""
        projection = ("conv", "norm") if "encoder.input_proj.0.conv.weight" in names else ("0", "1")
        output = ("proj", "norm") if "decoder.enc_output.proj.weight" in names else ("0", "1")
        rows = backbone + self._rows_of_authors(projection, output)
        buffers = held([*batch_counters(rows), *buffers_of_authors(with_anchors=True)], names)
        title = f"{self.slug}, projections {'.'.join(projection)}, proposals {'.'.join(output)}"
        return Scheme(title, tuple(rows), buffers=buffers)

    def _rows_of_authors(self, projection: tuple[str, str], output: tuple[str, str]) -> list[Row]:
        """Return the authors' table but for the backbone."""
        return rows_of_authors(projection, output)

    def _rows_of_hugging_face(self, is_in_memory: bool) -> list[Row]:
        """Return transformers' table but for backbone and heads."""
        return rows_of_hugging_face(is_in_memory)

    def _detected_of_hugging_face(self, names: AbstractSet[str], prefix: str, backbone: list[Row]) -> Scheme:
        is_in_memory = f"{prefix}decoder.layers.0.self_attn.o_proj.weight" in names
        places: dict[str, str] = {}
        copies: dict[str, tuple[str, ...]] = {}
        for kind in HEADS:
            inside, beside = f"{prefix}decoder.{kind}", kind
            there = [place for place in (inside, beside) if any(name.startswith(f"{place}.") for name in names)]
            places[kind] = (there or [inside])[0]
            if len(there) > 1:
                copies |= copies_of(kind, inside, beside, range(_depth(names, inside)))
        rows = [
            *backbone,
            *prefixed(self._rows_of_hugging_face(is_in_memory), prefix),
            *heads(*places.values()),
        ]
        buffers = held([*batch_counters(rows), points_in_transformers(prefix, self.points_there)], names)
        title = f"{self.slug}-hugging-face{'-in-memory' if is_in_memory else ''}, {', '.join(places.values())}"
        return Scheme(title, tuple(rows), copies, buffers)

    def architecture(self, checkpoint: Checkpoint, scheme: Scheme) -> dict[str, Any]:
        """Return the fields of the configuration, from `config.json` or else from the tensors' shapes."""
        shapes, config = shapes_by_path(checkpoint, scheme), checkpoint.config or {}
        if "d_model" in config or config.get("model_type") in self.model_types:
            return self._from_config(checkpoint.name, config, shapes)
        trunk = self._trunk_in(shapes)
        backbone, frozen = trunk.as_trained(trunk.from_tensors(shapes), self._trains_norm(checkpoint))
        fields: dict[str, Any] = {"backbone": dataclasses.asdict(backbone), "frozen": frozen, "num_classes": _CLASSES}
        if "proposals/projection/kernel" not in shapes:
            return fields | self._around(backbone)
        fields |= self._from_tensors(checkpoint, shapes)
        is_of_authors = scheme.title.startswith(f"{self.slug}, projections")
        if is_of_authors and not checkpoint.arguments and _is_evaluated_early(backbone, fields):
            logger.warning(
                "%s: an R50-m, of which its authors compute 3 of 6 decoder layers in inference, as is done here; to "
                "compute all: model.inference_layers = None",
                checkpoint.name,
            )
            fields["inference_layers"] = 3
        return fields

    def _trunk_in(self, shapes: Mapping[str, tuple[int, ...]]) -> Trunk:
        trunk = trunk_in_paths(shapes, (RESNET_VD, HGNET))
        if trunk not in self.trunks:
            raise ValueError(f"a {self.member} over a {trunk.title} that is no {self._kinds()}")
        return trunk

    def _trains_norm(self, checkpoint: Checkpoint) -> bool:
        """Whether a file without configuration is of a model whose backbone's batch normalisation is trained."""
        return False

    def _around(self, backbone: Any) -> dict[str, Any]:
        """Return the fields of what is published around a backbone."""
        return _AROUND.get((backbone.block, backbone.depths), {})

    def coefficients(self, checkpoint: Checkpoint) -> dict[str, float]:
        """Return the loss that `config.json` describes, or else the training arguments do."""
        config = checkpoint.config or {}
        if "d_model" in config or config.get("model_type") in self.model_types:
            for name, usual in OF_MATCHING.items():
                if config.get(name, usual) != usual:
                    logger.warning(
                        "%s: config.json says %s=%r of the matching, which has %r here",
                        *(checkpoint.name, name, config[name], usual),
                    )
            return self.coefficients_of(config)
        told_of_loss = told(self._there(self.arguments_of_loss), checkpoint.arguments)
        return {ours: float(value) for ours, value in told_of_loss}

    def _there(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings by what the authors' YAML files call their parts."""
        parts = {"RTDETRTransformer.": f"{self.decoder_there}.", "SetCriterion.": f"{self.loss_there}."}
        return {re.sub(r"^\w+\.", lambda part: parts.get(part[0], part[0]), name): x for name, x in names.items()}

    def coefficients_of(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Return what a `config.json` tells of the loss."""
        return {ours: float(value) for ours, value in told(self.criterion, config)}

    def _from_config(
        self, title: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Any]:
        self._refuse_described(config)
        if config.get("eval_size") is not None:
            logger.warning(
                "%s: config.json says eval_size=%r, with which transformers leaves positions out when it evaluates; "
                "they are added here as in training, which is what its authors do",
                *(title, config["eval_size"]),
            )
        is_trainable = config.get("freeze_backbone_batch_norms", True) is False
        described = config.get("backbone_config") or {}
        own = self.trunks[0] if shapes.get("backbone/stem/stem1/conv/convolution/kernel") is None else HGNET
        trunk = next((one for one in self.trunks if one.model_type == described.get("model_type")), own)
        backbone, frozen = trunk.as_trained(trunk.from_config(config, shapes), is_trainable)
        names = config.get("id2label")
        classes = len(names) if names and isinstance(names, Mapping | list) else int(config.get("num_labels", 2))
        return {
            "backbone": dataclasses.asdict(backbone),
            "num_classes": classes,
            "id2label": names or None,
            "frozen": frozen,
            **dict(told(self.fields, config)),
        }

    def _refuse_described(self, config: Mapping[str, Any]) -> None:
        """Raise a `ValueError` if a `config.json` describes what is not made here."""
        for name, only in self.always.items():
            if config.get(name, only) != only:
                raise ValueError(f"{name}={config[name]!r}, but here it is {only!r} alone")
        levels = int(config.get("num_feature_levels", 3))
        strides = tuple(config.get("feat_strides", STRIDES[-levels:]))
        if strides != STRIDES[-levels:]:
            raise ValueError(
                f"feat_strides={list(strides)} with num_feature_levels={levels}, but here levels are the backbone's "
                f"last maps, of strides {list(STRIDES[-levels:])}"
            )
        for name in ("encoder_activation_function", "activation_function", "decoder_activation_function"):
            if (activation := config.get(name, "relu")) not in _ACTIVATIONS:
                raise ValueError(f"{name}={activation!r}, but here it is one of {', '.join(_ACTIVATIONS)}")

    def _from_tensors(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        def needed(path: str) -> int:
            if not shapes.get(path):
                raise ValueError(
                    f"{checkpoint.name}: the tensor for {path} is missing: the architecture cannot be told"
                )
            return shapes[path][0]

        def count(pattern: str) -> int:
            found = {int(match[1]) for path in shapes if (match := re.match(pattern, path))}
            if found != set(range(len(found))):
                raise ValueError(f"{checkpoint.name}: of {pattern} only {sorted(found)[:8]} are there")
            return len(found)

        arguments = checkpoint.arguments
        dropout, evaluated = self._there({DROPOUT: 0, EVALUATED: 0})
        nhead = f"{self.decoder_there}.nhead"
        attention_heads = int(arguments.get("nheads", arguments.get(nhead, _HEADS_OF_ATTENTION)))
        levels, attended = count(r"input_projection/level(\d+)/"), count(r"encoder/aifi(\d+)/")
        encoder_dim = needed("input_projection/level0/convolution/kernel")
        fields: dict[str, Any] = {
            "num_queries": _QUERIES,
            "d_model": needed("proposals/projection/kernel"),
            "encoder_dim": encoder_dim,
            "encoder_layers": count(r"encoder/aifi0/layer(\d+)/"),
            "encoder_attention_heads": int(arguments.get("nheads", _HEADS_OF_ATTENTION)),
            "attended_levels": tuple(range(levels - max(1, attended), levels)),
            "fusion_blocks": count(rf"{self.fusion}/block(\d+)/"),
            "expansion": self._expansion(needed(f"{self.fusion}/conv1/convolution/kernel"), encoder_dim),
            "decoder_layers": count(r"decoder/layer(\d+)/"),
            "decoder_attention_heads": attention_heads,
            "decoder_ffn_dim": needed("decoder/layer0/feed_forward/hidden/kernel"),
            "decoder_points": self._points(checkpoint, shapes, attention_heads, levels),
            "num_feature_levels": levels,
            "learned_content": "content_embedding/embeddings" in shapes,
            **dict(told(self._there(self.arguments), arguments)),
            **{name: arguments[dropout] for name in DROPOUTS if dropout in arguments},
        }
        if attended:
            fields["encoder_ffn_dim"] = needed("encoder/aifi0/layer0/feed_forward/hidden/kernel")
        if fields["learned_content"]:
            fields["num_queries"] = needed("content_embedding/embeddings")
        if ENCODED in arguments:
            fields["attended_levels"] = tuple(int(level) for level in str(arguments[ENCODED]).split(","))
        if arguments.get(evaluated, -1) >= 0:
            fields["inference_layers"] = int(arguments[evaluated]) + 1
        return fields

    def _expansion(self, hidden: int, channels: int) -> float:
        """Return the field that says how many channels are inside the encoder's fusion blocks."""
        return _share(hidden, channels)

    def _points(
        self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], heads: int, levels: int
    ) -> int | tuple[int, ...]:
        """Return the points of each level, from how many there are."""
        weights = shapes["decoder/layer0/cross_attention/attention_weights/kernel"][0]
        if weights % (heads * levels):
            raise ValueError(
                f"{checkpoint.name}: {heads} heads cannot share the {weights} attention weights of the decoder on "
                f"{levels} levels: say how many heads there are (heads)"
            )
        return weights // (heads * levels)

    def refuse_for_transformers(self, config: Any, backbone: Backbone) -> None:
        """Raise a `ValueError` if transformers has no such model, or would compute another one."""
        if backbone == "timm":
            raise ValueError(f"a {self.member} is not written with a backbone of timm: leave backbone out")
        self._refuse_backbone(config)
        if isinstance(config.backbone, ResNetConfig):
            refuse_other_shortcuts(config.backbone)
        self._refuse_activations(config, "transformers")
        self._refuse_blocks(config)
        if config.inference_layers not in (None, config.decoder_layers):
            raise ValueError(
                f"inference_layers={config.inference_layers}, but transformers computes all {config.decoder_layers}: "
                "export_pth, or a target ending in .pth, keeps it; or set it to None first"
            )
        if config.learned_content:
            logger.warning("learned_content=True is written, but transformers 5.23 fails to compute with it")

    def _refuse_blocks(self, config: Any) -> None:
        if config.fusion_blocks != _BLOCKS:
            raise ValueError(
                f"fusion_blocks={config.fusion_blocks}, but transformers has {_BLOCKS} alone: export_pth, or a target "
                "ending in .pth, keeps them"
            )

    def refuse_for_authors(self, config: Any) -> None:
        """Raise a `ValueError` if the authors' code has no such model, or would compute another one."""
        self._refuse_backbone(config)
        self._refuse_activations(config, self.authors)

    def _refuse_backbone(self, config: Any) -> None:
        if isinstance(config.backbone, ResNetConfig) and config.backbone.variant != "vd":
            raise ValueError(
                f'a backbone of variant={config.backbone.variant!r}, but a {self.member} is written with variant="vd" '
                "alone"
            )

    def _refuse_activations(self, config: Any, who: str) -> None:
        for name in ("encoder_activation", "activation_function", "decoder_activation"):
            if getattr(config, name) not in _ACTIVATIONS:
                raise ValueError(
                    f"{name}={getattr(config, name)!r} is not known to be the same in {who}: only "
                    f"{', '.join(_ACTIVATIONS)} can be exported there"
                )

    def is_unknown_to_torchvision(self, config: Any) -> bool:
        """Whether the authors' code has no such backbone."""
        backbone = config.backbone
        if not isinstance(backbone, ResNetConfig):
            return False
        widths = (64, 128, 256, 512) if backbone.block == "basic" else (256, 512, 1024, 2048)
        is_known = (backbone.block, backbone.depths) in _DEPTHS_OF_AUTHORS
        return not is_known or (backbone.stem_channels, *backbone.channels) != (64, *widths)

    def hugging_face_config(self, config: Any, criterion: Any, backbone: Backbone) -> dict[str, Any]:
        """Return what `config.json` says of a model, for versions 4 and 5 of transformers."""
        names, levels = config.names, config.num_feature_levels
        written = {theirs: _plain(getattr(config, ours)) for theirs, ours in self.fields.items()}
        of_loss = {} if criterion is None else self.criterion
        return {
            "model_type": self.model_types[0],
            "architectures": [self.transformers_class],
            **written,
            "encoder_in_channels": list(config.backbone.channels[-levels:]),
            "decoder_in_channels": [config.encoder_dim] * levels,
            "feat_strides": list(STRIDES[-levels:]),
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
            **{theirs: float(getattr(criterion, ours)) for theirs, ours in of_loss.items()},
            **self.always,
            "freeze_backbone_batch_norms": config.backbone.batch_norm == "frozen",
            "backbone_config": trunk_of(config.backbone, self.trunks).described(config.backbone, levels),
        }

    def hugging_face_scheme(self, config: Any, backbone: Backbone = "hugging-face") -> Scheme:
        """Return how transformers names the tensors on disk."""
        return self._in_transformers(config, is_in_memory=False)

    def reference_scheme(self, config: Any) -> Scheme:
        """Return the names of the `state_dict()` of version 5's model."""
        return self._in_transformers(config, is_in_memory=True)

    def _in_transformers(self, config: Any, is_in_memory: bool) -> Scheme:
        inside = {kind: f"{MODEL}decoder.{kind}" for kind in HEADS}
        copies: dict[str, tuple[str, ...]] = {}
        if is_in_memory and self.has_both_heads:
            for kind, place in inside.items():
                copies |= copies_of(kind, place, kind, range(config.decoder_layers))
        trunk = trunk_of(config.backbone, self.trunks)
        backbone = prefixed(trunk.tables["hugging-face"], f"{MODEL}backbone.model.")
        rest = prefixed(self._rows_of_hugging_face(is_in_memory), MODEL) + heads(*inside.values())
        counted = rest if config.backbone.batch_norm == "frozen" else [*backbone, *rest]
        buffers = batch_counters(counted) + (
            [points_in_transformers(MODEL, self.points_there)] if self.keeps_points else []
        )
        title = f"{self.member} {'in memory' if is_in_memory else 'on disk'}"
        return Scheme(title, (*backbone, *rest), copies, tuple(buffers))

    def authors_scheme(self, config: Any) -> Scheme:
        """Return how the authors' code names the tensors."""
        tables = trunk_of(config.backbone, self.trunks).tables
        backbone = prefixed(tables[next(who for who in self.names_of_trunk if who in tables)], "backbone.")
        rest = self._rows_of_authors(self.projection, self.output)
        counted = rest if config.backbone.batch_norm == "frozen" else [*backbone, *rest]
        buffers = batch_counters(counted)
        if self.keeps_points:
            buffers += buffers_of_authors(with_anchors=config.preprocessing.rule == "stretch")
        return Scheme(f"{self.member} of its authors", (*backbone, *rest), buffers=tuple(buffers))

    def authors_arguments(self, config: Any, criterion: Any) -> dict[str, Any]:
        """Return the settings of the authors' YAML files that say what the model and its loss are."""
        if lost := [name for name in DROPOUTS if getattr(config, name) != config.dropout]:
            logger.warning("%s: %s has one dropout, and is told of %s", ", ".join(lost), self.authors, config.dropout)
        evaluated = -1 if config.inference_layers is None else config.inference_layers - 1
        return self._there(
            {
                **{theirs: getattr(config, ours) for theirs, ours in self.arguments.items()},
                **{f"{part}.dropout": config.dropout for part in ("HybridEncoder", "RTDETRTransformer")},
                ENCODED: ",".join(map(str, config.attended_levels)),
                EVALUATED: evaluated,
                **{theirs: float(getattr(criterion, ours)) for theirs, ours in self.arguments_of_loss.items()},
            }
        )


SCALES = re.compile(r"(.*\.)?(n|num)_points_scale")


def is_second_version(names: Iterable[str]) -> bool:
    """Whether a file is of the second version: of its authors' second code, or with the numbers of its points."""
    return any(name.endswith("decoder.enc_output.proj.weight") or SCALES.fullmatch(name) for name in names)


def _is_evaluated_early(backbone: Any, fields: Mapping[str, Any]) -> bool:
    """Whether it is the network whose authors leave the last layers of the decoder out."""
    told = (fields["expansion"], fields["decoder_layers"])
    return isinstance(backbone, ResNetConfig) and (backbone.block, backbone.depths, *told) == _EVALUATED_EARLY


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _share(hidden: int, channels: int) -> float:
    """Return the share of the channels of which as many are left, however it is rounded down."""
    share = hidden / channels
    return share if int(channels * share) == hidden else (hidden + 0.5) / channels


def _depth(names: Iterable[str], place: str) -> int:
    """Return how many layers have a head in a place."""
    found = {int(match[1]) for name in names if (match := re.match(rf"{re.escape(place)}\.(\d+)\.", name))}
    return max(found, default=-1) + 1
