"""Deformable DETR: levels, deformable attention and each layer's heads, as its authors and Hugging Face name them.

Heads have up to three names: both codes hold them beside the decoder and, where the decoder refines boxes, inside of
it, too; on disk Hugging Face keeps one of the two. Where layers share a head, its copies may be there under the numbers
of all layers, or not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from port_weights.checkpoints import Checkpoint
from port_weights.families.detr import HUGGING_FACE_MODEL, PREFIXES, DETRFamily
from port_weights.families.family import told
from port_weights.families.resnet import BACKBONES, Backbone, find_backbone
from port_weights.families.rows import (
    affine,
    deformable_attention,
    group_norm_conv,
    linear,
    packed_attention,
    split_attention,
)
from port_weights.layouts import VECTOR
from port_weights.tables import Row, Scheme, prefixed

# Where the heads may lie, behind what stands before the detector: beside the decoder, or in it.
_BESIDE, _OF_AUTHORS, _OF_HUGGING_FACE = "", "transformer.decoder.", f"{HUGGING_FACE_MODEL}decoder."
_PLACES = (_BESIDE, _OF_AUTHORS, _OF_HUGGING_FACE)
_ANY_PLACE = r"(?:|.*\.)"
_CLASS_TENSORS = ("weight", "bias")
_BOX_TENSORS = tuple(f"layers.{layer}.{tensor}" for layer in range(3) for tensor in _CLASS_TENSORS)
_TENSORS = {"class_embed": _CLASS_TENSORS, "bbox_embed": _BOX_TENSORS}

_FIELDS = {  # of config.json, and of ours
    "num_feature_levels": "num_feature_levels",
    "encoder_n_points": "encoder_points",
    "decoder_n_points": "decoder_points",
    "with_box_refine": "with_box_refine",
    "two_stage": "two_stage",
}
_ARGUMENTS = {  # of the authors' main.py, and of ours
    "num_feature_levels": "num_feature_levels",
    "enc_n_points": "encoder_points",
    "dec_n_points": "decoder_points",
    "with_box_refine": "with_box_refine",
    "two_stage": "two_stage",
}
_CLASS_COST_OF_TRANSFORMERS = 1  # its default; the paper's, and ours, is 2
_AUTHORS_WIDTH = 256  # which their proposals take for granted


def _levels_and_queries(transformer: str) -> list[Row]:
    """Return rows of what lies around encoder and decoder; `transformer` stands before what is the authors' module."""
    return [
        *group_norm_conv("input_proj.{l}.0", "input_proj.{l}.1", "input_projection/level{l}"),
        (f"{transformer}level_embed", "level_embedding/embeddings", VECTOR),
        *linear(f"{transformer}reference_points", "reference_points"),
        *linear(f"{transformer}enc_output", "proposals/projection"),
        *affine(f"{transformer}enc_output_norm", "proposals/norm"),
        *linear(f"{transformer}pos_trans", "proposals/position"),
        *affine(f"{transformer}pos_trans_norm", "proposals/position_norm"),
    ]


def _of_authors() -> list[Row]:
    encoder, decoder = "transformer.encoder.layers.{i}", "transformer.decoder.layers.{i}"
    return [
        *_levels_and_queries("transformer."),
        ("query_embed.weight", "query_embedding/embeddings", VECTOR),
        ("backbone.1.row_embed.weight", "position_embedding/row", VECTOR),
        ("backbone.1.col_embed.weight", "position_embedding/column", VECTOR),
        *deformable_attention(f"{encoder}.self_attn", "encoder/layer{i}/self_attention"),
        *affine(f"{encoder}.norm1", "encoder/layer{i}/self_attention_norm"),
        *linear(f"{encoder}.linear1", "encoder/layer{i}/feed_forward/hidden"),
        *linear(f"{encoder}.linear2", "encoder/layer{i}/feed_forward/output"),
        *affine(f"{encoder}.norm2", "encoder/layer{i}/feed_forward_norm"),
        *packed_attention(f"{decoder}.self_attn", "decoder/layer{i}/self_attention"),
        # Their first normalisation is the second in the order of computation.
        *affine(f"{decoder}.norm2", "decoder/layer{i}/self_attention_norm"),
        *deformable_attention(f"{decoder}.cross_attn", "decoder/layer{i}/cross_attention"),
        *affine(f"{decoder}.norm1", "decoder/layer{i}/cross_attention_norm"),
        *linear(f"{decoder}.linear1", "decoder/layer{i}/feed_forward/hidden"),
        *linear(f"{decoder}.linear2", "decoder/layer{i}/feed_forward/output"),
        *affine(f"{decoder}.norm3", "decoder/layer{i}/feed_forward_norm"),
    ]


def _of_hugging_face(output: str, feed_forward: str, position: str = "position_embedding") -> list[Row]:
    encoder, decoder = "encoder.layers.{i}", "decoder.layers.{i}"
    return [
        *_levels_and_queries(""),
        ("query_position_embeddings.weight", "query_embedding/embeddings", VECTOR),
        (f"{position}.row_embeddings.weight", "position_embedding/row", VECTOR),
        (f"{position}.column_embeddings.weight", "position_embedding/column", VECTOR),
        *deformable_attention(f"{encoder}.self_attn", "encoder/layer{i}/self_attention"),
        *affine(f"{encoder}.self_attn_layer_norm", "encoder/layer{i}/self_attention_norm"),
        *linear(f"{encoder}.{feed_forward}fc1", "encoder/layer{i}/feed_forward/hidden"),
        *linear(f"{encoder}.{feed_forward}fc2", "encoder/layer{i}/feed_forward/output"),
        *affine(f"{encoder}.final_layer_norm", "encoder/layer{i}/feed_forward_norm"),
        *split_attention(f"{decoder}.self_attn", "decoder/layer{i}/self_attention", output),
        *affine(f"{decoder}.self_attn_layer_norm", "decoder/layer{i}/self_attention_norm"),
        *deformable_attention(f"{decoder}.encoder_attn", "decoder/layer{i}/cross_attention"),
        *affine(f"{decoder}.encoder_attn_layer_norm", "decoder/layer{i}/cross_attention_norm"),
        *linear(f"{decoder}.{feed_forward}fc1", "decoder/layer{i}/feed_forward/hidden"),
        *linear(f"{decoder}.{feed_forward}fc2", "decoder/layer{i}/feed_forward/output"),
        *affine(f"{decoder}.final_layer_norm", "decoder/layer{i}/feed_forward_norm"),
    ]


def _heads(of_layers: Mapping[str, Mapping[int, str]], encoder: int | None) -> list[Row]:
    """Return rows of heads.

    Args:
        of_layers: for `class_embed` and `bbox_embed`, number of the head → its name.
        encoder: the number of the heads that are the encoder's, where there are any.
    """
    rows = []
    for kind, path in (("class_embed", "class_head"), ("bbox_embed", "box_head")):
        for number, name in of_layers[kind].items():
            where = f"encoder_{path}" if number == encoder else f"{path}/layer{number}"
            if kind == "class_embed":
                rows += linear(name, where)
            else:
                rows += linear(f"{name}.layers.{{i}}", f"{where}/layer{{i}}")
    return rows


def _copies(kind: str, name: str, others: AbstractSet[str] | list[str]) -> dict[str, tuple[str, ...]]:
    """Return the tensors of a head, each with its copies in other heads."""
    return {f"{name}.{tensor}": tuple(f"{one}.{tensor}" for one in others) for tensor in _TENSORS[kind]}


class DeformableDETRFamily(DETRFamily):
    """What Deformable DETR differs in."""

    member = "DeformableDETR"
    config = "DeformableDETRConfig"
    model_types: ClassVar[tuple[str, ...]] = ("deformable_detr",)
    transformers_class = "DeformableDetrForObjectDetection"
    image_processor = "DeformableDetrImageProcessor"
    has_no_object = False
    num_queries = 300
    first_projection = "input_projection/level0/convolution/kernel"
    on_disk, in_memory = "deformable-hugging-face", "deformable-hugging-face-in-memory"
    of_authors = "deformable-detr"  # fundamentalvision/Deformable-DETR
    landmarks: ClassVar[tuple[tuple[str, str], ...]] = (
        ("deformable-detr", "transformer.encoder.layers.0.self_attn.sampling_offsets.weight"),
        ("deformable-hugging-face", "encoder.layers.0.self_attn.sampling_offsets.weight"),
    )

    def is_of(self, paths: AbstractSet[str], names: AbstractSet[str], model_type: str | None) -> bool:
        """Whether there are levels."""
        return any(path.startswith("level_embedding/") for path in paths)

    def tables(self) -> dict[str, list[Row]]:
        """Return the table of each naming but for the heads."""
        return {
            "deformable-detr": _of_authors(),
            "deformable-hugging-face": _of_hugging_face("out_proj", ""),
            "deformable-hugging-face-in-memory": _of_hugging_face("o_proj", "mlp."),
        }

    def _scheme(
        self, backbone: str, naming: str, prefix: str, backbone_prefix: str, heads: list[Row], copies: Any
    ) -> Scheme:
        rows = prefixed(BACKBONES[backbone], backbone_prefix) + prefixed(self.tables()[naming], prefix) + heads
        return Scheme(f"{naming}, {backbone} backbone", tuple(rows), copies)

    def detect(self, names: AbstractSet[str]) -> Scheme | None:
        """Return how a checkpoint names its tensors: each head under the first of its names that is there."""
        backbone, backbone_prefix = find_backbone(names)
        for naming, landmark in self.landmarks:
            for prefix in PREFIXES:
                if not backbone or prefix + landmark not in names:
                    continue
                is_in_memory = f"{prefix}encoder.layers.0.mlp.fc1.weight" in names
                heads, copies = self._heads_in(names, prefix.removesuffix(HUGGING_FACE_MODEL))
                return self._scheme(
                    backbone, self.in_memory if is_in_memory else naming, prefix, backbone_prefix, heads, copies
                )
        return None

    def _heads_in(self, names: AbstractSet[str], prefix: str) -> tuple[list[Row], dict[str, tuple[str, ...]]]:
        layers = [int(match[1]) for name in names if (match := re.search(r"decoder\.layers\.(\d+)\.", name))]
        depth = max(layers, default=-1) + 1
        is_two_stage = any(re.fullmatch(rf"{_ANY_PLACE}enc_output\.weight", name) for name in names)
        found: dict[str, dict[int, str]] = {}
        copies: dict[str, tuple[str, ...]] = {}
        for kind, tensors in _TENSORS.items():
            there = {
                number: [
                    name for place in _PLACES if f"{(name := f'{prefix}{place}{kind}.{number}')}.{tensors[0]}" in names
                ]
                for number in range(depth + is_two_stage)
            }
            first = next(iter(there.get(0, [])), f"{prefix}{kind}.0")
            # A head that is missing is a layer's, and shared with the first layer's.
            found[kind] = {number: (same or [first])[0] for number, same in there.items() if same or number < depth}
            for same in there.values():
                copies |= _copies(kind, same[0], same[1:]) if same[1:] else {}
            # Where the decoder refines no boxes, the others are the first once more.
            refines = any(f"{place}bbox_embed." in name for place in _PLACES if place for name in names)
            others = [] if refines else [same[0] for number, same in there.items() if same and number]
            for tensor, of_first in _copies(kind, first, others).items():
                copies[tensor] = (*copies.get(tensor, ()), *of_first)
        return _heads(found, depth if is_two_stage else None), copies

    def _heads_of(self, config: Any, places: Mapping[str, tuple[str, ...]]) -> tuple[list[Row], dict[str, Any]]:
        """Return rows of a model's heads, each under its first name, and the others.

        Args:
            config: the architecture.
            places: where the heads of each kind lie: one place, or several in each of which they are.
        """
        depth = config.decoder_layers
        numbers = range(depth + config.two_stage) if config.with_box_refine else range(1)
        names = {
            kind: {number: [f"{place}{kind}.{number}" for place in of_kind] for number in numbers}
            for kind, of_kind in places.items()
        }
        copies: dict[str, tuple[str, ...]] = {}
        for kind, of_kind in names.items():
            for first, *others in of_kind.values():
                copies |= _copies(kind, first, others) if others else {}
        firsts = {kind: {number: same[0] for number, same in of_kind.items()} for kind, of_kind in names.items()}
        return _heads(firsts, depth if config.two_stage else None), copies

    def _shared(self, config: Any) -> dict[str, tuple[str, ...]]:
        """Return the copies of heads that all layers share, under the numbers of the others."""
        if config.with_box_refine:
            return {}
        others = range(1, config.decoder_layers)
        return {
            name: same
            for kind in _TENSORS
            for name, same in _copies(kind, f"{kind}.0", [f"{kind}.{number}" for number in others]).items()
        }

    def hugging_face_scheme(self, config: Any, backbone: Backbone = "hugging-face") -> Scheme:
        """Return how transformers names the tensors on disk: heads where the decoder looks for them."""
        names = "torchvision" if backbone == "timm" else "hugging-face"
        places = {
            "class_embed": (_OF_HUGGING_FACE if config.two_stage else _BESIDE,),
            "bbox_embed": (_OF_HUGGING_FACE if config.with_box_refine else _BESIDE,),
        }
        return self._scheme(
            names,
            self.on_disk,
            HUGGING_FACE_MODEL,
            f"{HUGGING_FACE_MODEL}backbone.conv_encoder.model.",
            *self._heads_of(config, places),
        )

    def reference_scheme(self, config: Any) -> Scheme:
        """Return the names of the `state_dict()` of version 5's model."""
        heads, copies = self._heads_of(config, self._both(config, _OF_HUGGING_FACE))
        copies |= self._shared(config)
        prefix = HUGGING_FACE_MODEL
        return self._scheme("hugging-face", self.in_memory, prefix, f"{prefix}backbone.model.", heads, copies)

    def authors_scheme(self, config: Any) -> Scheme:
        """Return how the authors' code names the tensors, with all copies of the heads, which it insists on."""
        heads, copies = self._heads_of(config, self._both(config, _OF_AUTHORS))
        copies |= self._shared(config)
        return self._scheme("torchvision", self.of_authors, "", "backbone.0.body.", heads, copies)

    def _both(self, config: Any, decoder: str) -> dict[str, tuple[str, ...]]:
        """Return where heads lie in memory: beside the decoder, and in it where it uses them."""
        return {
            "class_embed": (_BESIDE, decoder) if config.two_stage else (_BESIDE,),
            "bbox_embed": (_BESIDE, decoder) if config.with_box_refine else (_BESIDE,),
        }

    def coefficients_of(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Return what a `config.json` tells of the loss.

        A cost of classes that is transformers' default is no choice, and not what the model was published with.
        """
        found = super().coefficients_of(config)
        if found.get("cost_class") == _CLASS_COST_OF_TRANSFORMERS and "class_loss_coefficient" not in found:
            del found["cost_class"]
        return found

    def _from_config(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        fields = super()._from_config(config, shapes) | dict(told(_FIELDS, config))
        if fields.get("two_stage") and config.get("two_stage_num_proposals") is not None:
            fields["num_queries"] = config["two_stage_num_proposals"]
        return fields

    def _from_tensors(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        fields = super()._from_tensors(checkpoint, shapes)
        if self.first_projection not in shapes:
            return fields
        levels = len({path.split("/")[1] for path in shapes if path.startswith("input_projection/")})
        points = {}
        for part, attention in (("encoder", "self_attention"), ("decoder", "cross_attention")):
            weights, heads = (
                shapes[f"{part}/layer0/{attention}/attention_weights/kernel"][0],
                fields[f"{part}_attention_heads"],
            )
            if weights % (heads * levels):
                raise ValueError(
                    f"{checkpoint.name}: {heads} heads cannot share the {weights} attention weights of the {part} on "
                    f"{levels} levels: say how many heads there are (heads)"
                )
            points[f"{part}_points"] = weights // (heads * levels)
        # In a checkpoint of refined boxes the decoder has them, too.
        in_decoder = re.compile(rf"{_ANY_PLACE}decoder\.bbox_embed\.0\..*")
        refines = any(in_decoder.fullmatch(name) for name in checkpoint.shapes)
        two_stage = "proposals/projection/kernel" in shapes
        fields |= {"num_feature_levels": levels, **points, "with_box_refine": refines or two_stage}
        fields |= {"two_stage": two_stage, **dict(told(_ARGUMENTS, checkpoint.arguments))}
        if two_stage:
            fields["num_queries"] = int(checkpoint.arguments.get("num_queries", self.num_queries))
        return fields

    def scores_of_proposals(self, logits: Any) -> Any:
        """Return the logits of the first class, as its authors do."""
        return logits[..., 0]

    def refuse_for_transformers(self, config: Any, backbone: Backbone) -> None:
        """Raise a `ValueError` for levels that transformers does not make of timm's maps; and as for DETR."""
        super().refuse_for_transformers(config, backbone)
        if backbone == "timm":
            _refuse_levels(config, "transformers with a backbone of timm", "backbone='hugging-face'")

    def refuse_for_authors(self, config: Any) -> None:
        """Raise a `ValueError` for levels and widths that the authors' code does not have; and as for DETR."""
        super().refuse_for_authors(config)
        _refuse_levels(config, "the authors' code", "a Hugging Face folder")
        if config.two_stage and config.d_model != _AUTHORS_WIDTH:
            raise ValueError(
                f"d_model={config.d_model}, but proposals in the authors' code are {_AUTHORS_WIDTH} wide: export a "
                "Hugging Face folder instead"
            )

    def hugging_face_config(self, config: Any, criterion: Any, backbone: Backbone) -> dict[str, Any]:
        """Return what `config.json` says of a model."""
        content = super().hugging_face_config(config, criterion, backbone)
        content |= {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
        content["two_stage_num_proposals"] = config.num_queries
        content["auxiliary_loss"] = config.auxiliary_outputs  # which are right there, in contrast to DETR's
        if backbone != "timm":
            stages = content["backbone_config"]["out_features"]
            content["backbone_config"]["out_features"] = stages[-len(config.map_channels) :]
        return content

    def authors_arguments(self, config: Any, criterion: Any) -> dict[str, Any]:
        """Return the settings of the authors' `main.py` that say what the model and its loss are."""
        arguments = super().authors_arguments(config, criterion)
        del arguments["pre_norm"]
        return arguments | {theirs: getattr(config, ours) for theirs, ours in _ARGUMENTS.items()}


def _refuse_levels(config: Any, who: str, instead: str) -> None:
    """Raise a `ValueError` for levels that are not made of one or of three maps."""
    if len(config.map_channels) != (1 if config.num_feature_levels == 1 else 3):
        raise ValueError(
            f"num_feature_levels={config.num_feature_levels} of {len(config.map_channels)} maps of the backbone, but "
            f"{who} makes levels of one map or of three: export {instead} instead"
        )
