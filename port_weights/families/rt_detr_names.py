"""How RT-DETR's authors and Hugging Face name its tensors.

The authors' two codes name all but two parts alike, and the second keeps beside the weights what it makes of its
configuration. Of Hugging Face's, version 5 renamed three parts in memory and still writes the old names to disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from port_weights.families.rows import (
    affine,
    conv_norm,
    deformable_attention,
    linear,
    packed_attention,
    split_attention,
)
from port_weights.layouts import VECTOR
from port_weights.tables import Buffer, Row

_HUGGING_FACE, _AUTHORS = "decoder.layers.{i}", "decoder.decoder.layers.{i}"
# A tensor that each is known by, and no other member's file has at that place.
OF_HUGGING_FACE = "decoder.layers.0.encoder_attn.value_proj.weight"
OF_AUTHORS = "decoder.decoder.layers.0.cross_attn.value_proj.weight"

_TENSORS = ("weight", "bias")
HEADS = {  # of transformers: their tensors in each layer
    "class_embed": _TENSORS,
    "bbox_embed": tuple(f"layers.{layer}.{tensor}" for layer in range(3) for tensor in _TENSORS),
}
STRIDES = (4, 8, 16, 32)  # of the backbone's stages
# Beside which variables the authors' second code, and transformers, keep what the configuration tells.
_OF_POINTS, _OF_ANCHORS = "decoder/layer{i}/cross_attention/sampling_offsets/bias", "proposals/projection/bias"
_ANCHOR_SIZE, _MARGIN = 0.05, 0.01  # of the image: that of the finest level's anchors, and what they keep from its edge


def _fusion() -> list[Row]:
    """Return rows of the convolutions between levels, which all name alike."""

    def part(name: str, path: str) -> list[Row]:
        return conv_norm(f"encoder.{name}.conv", f"encoder.{name}.norm", f"encoder/{path}")

    rows = part("lateral_convs.{i}", "lateral{i}") + part("downsample_convs.{i}", "downsample{i}")
    for theirs, ours in (("fpn_blocks", "top_down"), ("pan_blocks", "bottom_up")):
        rows += part(f"{theirs}.{{i}}.conv{{k}}", f"{ours}{{i}}/conv{{k}}")
        rows += part(f"{theirs}.{{i}}.bottlenecks.{{b}}.conv1", f"{ours}{{i}}/block{{b}}/dense")
        rows += part(f"{theirs}.{{i}}.bottlenecks.{{b}}.conv2", f"{ours}{{i}}/block{{b}}/pointwise")
    return rows


def selection(before: str, dense: str, norm: str) -> list[Row]:
    """Return rows of what selects the first boxes, and of the decoder's embeddings but for the content."""
    return [
        *linear(f"{before}enc_output.{dense}", "proposals/projection"),
        *affine(f"{before}enc_output.{norm}", "proposals/norm"),
        *linear(f"{before}enc_score_head", "encoder_class_head"),
        *linear(f"{before}enc_bbox_head.layers.{{i}}", "encoder_box_head/layer{i}"),
        (f"{before}denoising_class_embed.weight", "denoising_embedding/embeddings", VECTOR),
        *linear("decoder.query_pos_head.layers.{i}", "query_position/layer{i}"),
    ]


def rows_of_authors(projection: tuple[str, str], output: tuple[str, str]) -> list[Row]:
    """Return the authors' table but for the backbone; the two parts of projections and of proposals have two names."""
    encoder, decoder, ours = "encoder.encoder.{j}.layers.{i}", _AUTHORS, "decoder/layer{i}"
    aifi = "encoder/aifi{j}/layer{i}"
    convolution, normalization = (f"encoder.input_proj.{{l}}.{part}" for part in projection)
    return [
        *conv_norm(convolution, normalization, "input_projection/level{l}"),
        *packed_attention(f"{encoder}.self_attn", f"{aifi}/self_attention"),
        *affine(f"{encoder}.norm1", f"{aifi}/self_attention_norm"),
        *linear(f"{encoder}.linear1", f"{aifi}/feed_forward/hidden"),
        *linear(f"{encoder}.linear2", f"{aifi}/feed_forward/output"),
        *affine(f"{encoder}.norm2", f"{aifi}/feed_forward_norm"),
        *_fusion(),
        *conv_norm("decoder.input_proj.{l}.conv", "decoder.input_proj.{l}.norm", "decoder_projection/level{l}"),
        *selection("decoder.", *output),
        ("decoder.tgt_embed.weight", "content_embedding/embeddings", VECTOR),
        *packed_attention(f"{decoder}.self_attn", f"{ours}/self_attention"),
        *affine(f"{decoder}.norm1", f"{ours}/self_attention_norm"),
        *deformable_attention(f"{decoder}.cross_attn", f"{ours}/cross_attention"),
        *affine(f"{decoder}.norm2", f"{ours}/cross_attention_norm"),
        *linear(f"{decoder}.linear1", f"{ours}/feed_forward/hidden"),
        *linear(f"{decoder}.linear2", f"{ours}/feed_forward/output"),
        *affine(f"{decoder}.norm3", f"{ours}/feed_forward_norm"),
        *heads("decoder.dec_score_head", "decoder.dec_bbox_head"),
    ]


def rows_of_layers(aifi: str, output: str, hidden: str, last: str) -> list[Row]:
    """Return what transformers' layers of encoder and decoder have in common, by its names of four parts."""
    rows = []
    for theirs, ours in (
        (f"encoder.{aifi}.{{j}}.layers.{{i}}", "encoder/aifi{j}/layer{i}"),
        (_HUGGING_FACE, "decoder/layer{i}"),
    ):
        rows += [
            *split_attention(f"{theirs}.self_attn", f"{ours}/self_attention", output),
            *affine(f"{theirs}.self_attn_layer_norm", f"{ours}/self_attention_norm"),
            *linear(f"{theirs}.{hidden}", f"{ours}/feed_forward/hidden"),
            *linear(f"{theirs}.{last}", f"{ours}/feed_forward/output"),
            *affine(f"{theirs}.final_layer_norm", f"{ours}/feed_forward_norm"),
        ]
    return rows


def rows_of_hugging_face(is_in_memory: bool) -> list[Row]:
    """Return transformers' table but for backbone and heads; version 5 renamed three parts in memory."""
    aifi, output, feed_forward = ("aifi", "o_proj", "mlp.") if is_in_memory else ("encoder", "out_proj", "")
    rows = rows_of_layers(aifi, output, f"{feed_forward}fc1", f"{feed_forward}fc2")
    return [
        *conv_norm("encoder_input_proj.{l}.0", "encoder_input_proj.{l}.1", "input_projection/level{l}"),
        *rows,
        *_fusion(),
        *conv_norm("decoder_input_proj.{l}.0", "decoder_input_proj.{l}.1", "decoder_projection/level{l}"),
        *selection("", "0", "1"),
        ("weight_embedding.weight", "content_embedding/embeddings", VECTOR),
        *deformable_attention(f"{_HUGGING_FACE}.encoder_attn", "decoder/layer{i}/cross_attention"),
        *affine(f"{_HUGGING_FACE}.encoder_attn_layer_norm", "decoder/layer{i}/cross_attention_norm"),
    ]


def heads(of_classes: str, of_boxes: str) -> list[Row]:
    """Return rows of the heads of all layers by where they lie."""
    return [
        *linear(f"{of_classes}.{{i}}", "class_head/layer{i}"),
        *linear(f"{of_boxes}.{{i}}.layers.{{j}}", "box_head/layer{i}/layer{j}"),
    ]


def points_of(config: Any) -> tuple[int, ...]:
    """Return how many points of each level a head looks at."""
    points = config.decoder_points
    return (points,) * config.num_feature_levels if isinstance(points, int) else tuple(points)


def _scale_of_points(config: Any) -> np.ndarray:
    """Return, for each point, one by the number of its level's."""
    return np.asarray([1 / count for count in points_of(config) for _ in range(count)], np.float32)


def copies_of(kind: str, inside: str, beside: str, layers: Iterable[int]) -> dict[str, tuple[str, ...]]:
    """Return the tensors of the heads inside of the decoder, each with its copy beside it."""
    ends = [f"{layer}.{tensor}" for layer in layers for tensor in HEADS[kind]]
    return {f"{inside}.{end}": (f"{beside}.{end}",) for end in ends}


def points_in_transformers(prefix: str, name: str) -> Buffer:
    """Return what transformers keeps beside the second version's decoder, by what it calls it."""
    return f"{prefix}{_HUGGING_FACE}.encoder_attn.{name}", _OF_POINTS, _scale_of_points


def buffers_of_authors(with_anchors: bool) -> list[Buffer]:
    """Return what the authors' second code keeps beside the weights of its decoder.

    Args:
        with_anchors: whether images have one size, for which anchors are kept.
    """
    anchors: list[Buffer] = [
        ("decoder.anchors", _OF_ANCHORS, lambda config: _anchors(config)[0]),
        ("decoder.valid_mask", _OF_ANCHORS, lambda config: _anchors(config)[1]),
    ]
    return [
        (f"{_AUTHORS}.cross_attn.num_points_scale", _OF_POINTS, _scale_of_points),
        *(anchors if with_anchors else []),
    ]


def _anchors(config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of a box around each pixel of each level, infinite where it is not used, and whether it is."""
    height, width = config.preprocessing.size
    boxes = []
    for level, stride in enumerate(STRIDES[-config.num_feature_levels :]):
        y, x = np.meshgrid(np.arange(height // stride), np.arange(width // stride), indexing="ij")
        side = np.full(x.size, _ANCHOR_SIZE * 2**level)
        boxes.append(np.stack([(x.ravel() + 0.5) / x.shape[1], (y.ravel() + 0.5) / x.shape[0], side, side], axis=-1))
    box = np.concatenate(boxes)[None].astype(np.float32)
    is_used = np.all((box > _MARGIN) & (box < 1 - _MARGIN), axis=-1, keepdims=True)
    return np.where(is_used, np.log(box / (1 - box)), np.float32(np.inf)), is_used
