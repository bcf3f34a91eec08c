"""Conditional DETR: projections of their own for content and positions, as its authors and Hugging Face name them."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import ClassVar

from port_weights.families.detr import FACEBOOK_LAYER, DETRFamily, facebook_transformer, hugging_face_transformer
from port_weights.families.rows import linear, output_projection, split_projections
from port_weights.tables import Row

# Conditional DETR's projections by what they are called in the decoder layer: with "sa" for self-attention.
_CONDITIONAL_SELF = {
    "qcontent": "query",
    "kcontent": "key",
    "qpos": "query_position",
    "kpos": "key_position",
    "v": "value",
}
_CONDITIONAL_CROSS = {**_CONDITIONAL_SELF, "qpos_sine": "query_sine"}


def conditional_attention(layer: str, self_name: str, cross_name: str) -> list[Row]:
    """Return rows of the two attentions of a decoder layer, as its authors and Hugging Face on disk name them."""
    self_path, cross_path = "decoder/layer{i}/self_attention", "decoder/layer{i}/cross_attention"
    in_self = {f"{layer}.sa_{name}_proj": role for name, role in _CONDITIONAL_SELF.items()}
    in_cross = {f"{layer}.ca_{name}_proj": role for name, role in _CONDITIONAL_CROSS.items()}
    return [
        *output_projection(f"{layer}.{self_name}.out_proj", self_path),
        *split_projections(in_self, self_path),
        *output_projection(f"{layer}.{cross_name}.out_proj", cross_path),
        *split_projections(in_cross, cross_path),
    ]


def _conditional_attention_in_memory(layer: str) -> list[Row]:
    """Return the same rows in Hugging Face's version 5."""
    rows = []
    for torch_name, keras_name, names in (
        ("self_attn", "self_attention", _CONDITIONAL_SELF),
        ("encoder_attn", "cross_attention", _CONDITIONAL_CROSS),
    ):
        path = f"decoder/layer{{i}}/{keras_name}"
        spelled = {name.replace("content", "_content").replace("pos", "_pos", 1): role for name, role in names.items()}
        rows += output_projection(f"{layer}.{torch_name}.o_proj", path)
        rows += split_projections({f"{layer}.{torch_name}.{name}_proj": role for name, role in spelled.items()}, path)
    return rows


def _conditional_points(decoder: str) -> list[Row]:
    """Return rows of the reference points and their transformation."""
    return [
        *linear(f"{decoder}.ref_point_head.layers.{{i}}", "decoder/reference_point_head/layer{i}"),
        *linear(f"{decoder}.query_scale.layers.{{i}}", "decoder/query_scale/layer{i}"),
    ]


_LAYER = "decoder.layers.{i}"
_POINTS = _conditional_points("decoder")


class ConditionalDETRFamily(DETRFamily):
    """What Conditional DETR differs in."""

    member = "ConditionalDETR"
    config = "ConditionalDETRConfig"
    model_types: ClassVar[tuple[str, ...]] = ("conditional_detr",)
    transformers_class = "ConditionalDetrForObjectDetection"
    image_processor = "ConditionalDetrImageProcessor"
    has_no_object = False
    num_queries = 300
    on_disk, in_memory = "conditional-hugging-face", "conditional-hugging-face-in-memory"
    of_authors = "conditional-detr"  # Atten4Vis/ConditionalDETR
    landmarks: ClassVar[tuple[tuple[str, str], ...]] = (
        ("conditional-detr", "transformer.decoder.layers.0.sa_qcontent_proj.weight"),
        ("conditional-hugging-face", "decoder.layers.0.sa_qcontent_proj.weight"),
        ("conditional-hugging-face-in-memory", "decoder.layers.0.self_attn.q_content_proj.weight"),
    )

    def is_of(self, paths: AbstractSet[str], names: AbstractSet[str], model_type: str | None) -> bool:
        """Whether the decoder has reference points."""
        return any(path.startswith("decoder/reference_point_head/") for path in paths)

    def tables(self) -> dict[str, list[Row]]:
        """Return the table of the transformer of each naming."""
        on_disk = conditional_attention(_LAYER, "self_attn", "encoder_attn") + _POINTS
        in_memory = _conditional_attention_in_memory(_LAYER) + _POINTS
        return {
            "conditional-detr": facebook_transformer(
                conditional_attention(FACEBOOK_LAYER, "self_attn", "cross_attn")
                + _conditional_points("transformer.decoder")
            ),
            "conditional-hugging-face": hugging_face_transformer("out_proj", "", decoder_attention=on_disk),
            "conditional-hugging-face-in-memory": hugging_face_transformer(
                "o_proj", "mlp.", decoder_attention=in_memory
            ),
        }
