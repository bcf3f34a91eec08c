"""How the authors of LW-DETR and RF-DETR, and Hugging Face, name the tensors of both.

Hugging Face writes RF-DETR's to disk under the authors' names, and LW-DETR's under its own; in memory both have its.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from port_weights.families.rows import (
    affine,
    conv,
    conv_norm,
    deformable_attention,
    linear,
    packed_attention,
    split_attention,
)
from port_weights.layouts import CONV, HEADS_BIAS, HEADS_IN, HEADS_OUT, VECTOR, Layout, packed
from port_weights.tables import Row

# A row of its own in PyTorch: of tables `(1, rows, channels)`, and of tokens `(1, 1, channels)` and `(1, channels)`.
_TABLE = Layout(lambda tensor, shape: tensor[0], lambda array: array[None])
_TOKEN = Layout(lambda tensor, shape: tensor.reshape(shape), lambda array: array.reshape(1, 1, -1))
_MASK_TOKEN = Layout(lambda tensor, shape: tensor[0], lambda array: array[None])


def _attention(names: dict[str, str], output: str, path: str, key_bias: bool = True) -> list[Row]:
    """Return rows of attention whose four projections are layers of their own: name → role."""
    rows: list[Row] = [
        (f"{output}.weight", f"{path}/attention_output/kernel", HEADS_OUT),
        (f"{output}.bias", f"{path}/attention_output/bias", VECTOR),
    ]
    for name, role in names.items():
        rows.append((f"{name}.weight", f"{path}/{role}/kernel", HEADS_IN))
        if key_bias or role != "key":
            rows.append((f"{name}.bias", f"{path}/{role}/bias", HEADS_BIAS))
    return rows


def dinov2_rows(is_in_memory: bool, prefix: str) -> list[Row]:
    """Return rows of DINOv2, whose attention version 5 of transformers renamed in memory."""
    theirs, ours = f"{prefix}encoder.layer.{{i}}", "backbone/block{i}"
    embeddings = f"{prefix}embeddings"
    attention = f"{theirs}.attention"
    if is_in_memory:
        names = {f"{attention}.{role[0]}_proj": role for role in ("query", "key", "value")}
        output = f"{attention}.o_proj"
    else:
        names = {f"{attention}.attention.{role}": role for role in ("query", "key", "value")}
        output = f"{attention}.output.dense"
    return [
        (f"{embeddings}.cls_token", "backbone/embeddings/class_token", _TOKEN),
        (f"{embeddings}.mask_token", "backbone/embeddings/mask_token", _MASK_TOKEN),
        (f"{embeddings}.position_embeddings", "backbone/embeddings/positions/table", _TABLE),
        *conv(f"{embeddings}.patch_embeddings.projection", "backbone/embeddings/projection"),
        *affine(f"{theirs}.norm1", f"{ours}/attention_norm"),
        *_attention(names, output, f"{ours}/attention"),
        (f"{theirs}.layer_scale1.lambda1", f"{ours}/attention_scale", VECTOR),
        *affine(f"{theirs}.norm2", f"{ours}/feed_forward_norm"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/feed_forward/hidden"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/feed_forward/output"),
        (f"{theirs}.layer_scale2.lambda1", f"{ours}/feed_forward_scale", VECTOR),
        *affine(f"{prefix}layernorm", "backbone/norm"),
    ]


def lw_vit_rows_of_authors(prefix: str) -> list[Row]:
    """Return rows of LW-DETR's ViT as its authors name them: query, key and value in one, and no bias of the key."""
    theirs, ours = f"{prefix}blocks.{{i}}", "backbone/block{i}"
    path = f"{ours}/attention"
    rows: list[Row] = [
        (f"{theirs}.attn.qkv.weight", f"{path}/{role}/kernel", packed(HEADS_IN, part))
        for part, role in enumerate(("query", "key", "value"))
    ]
    return [
        (f"{prefix}pos_embed", "backbone/embeddings/positions/table", _TABLE),
        *conv(f"{prefix}patch_embed.proj", "backbone/embeddings/projection"),
        *affine(f"{theirs}.norm1", f"{ours}/attention_norm"),
        *rows,
        (f"{theirs}.attn.q_bias", f"{path}/query/bias", HEADS_BIAS),
        (f"{theirs}.attn.v_bias", f"{path}/value/bias", HEADS_BIAS),
        (f"{theirs}.attn.proj.weight", f"{path}/attention_output/kernel", HEADS_OUT),
        (f"{theirs}.attn.proj.bias", f"{path}/attention_output/bias", VECTOR),
        (f"{theirs}.gamma_1", f"{ours}/attention_scale", VECTOR),
        *affine(f"{theirs}.norm2", f"{ours}/feed_forward_norm"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/feed_forward/hidden"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/feed_forward/output"),
        (f"{theirs}.gamma_2", f"{ours}/feed_forward_scale", VECTOR),
    ]


def lw_vit_rows_of_hugging_face(is_in_memory: bool, prefix: str) -> list[Row]:
    """Return rows of LW-DETR's ViT as transformers names them, on disk or in memory."""
    theirs, ours = f"{prefix}encoder.layer.{{i}}", "backbone/block{i}"
    attention = f"{theirs}.attention"
    if is_in_memory:
        names = {f"{attention}.{role[0]}_proj": role for role in ("query", "key", "value")}
        output = f"{attention}.o_proj"
    else:
        names = {f"{attention}.attention.{role}": role for role in ("query", "key", "value")}
        output = f"{attention}.output"
    return [
        (f"{prefix}embeddings.position_embeddings", "backbone/embeddings/positions/table", _TABLE),
        *conv(f"{prefix}embeddings.projection", "backbone/embeddings/projection"),
        *affine(f"{theirs}.layernorm_before", f"{ours}/attention_norm"),
        *_attention(names, output, f"{ours}/attention", key_bias=False),
        (f"{theirs}.gamma_1", f"{ours}/attention_scale", VECTOR),
        *affine(f"{theirs}.layernorm_after", f"{ours}/feed_forward_norm"),
        *linear(f"{theirs}.intermediate.fc1", f"{ours}/feed_forward/hidden"),
        *linear(f"{theirs}.intermediate.fc2", f"{ours}/feed_forward/output"),
        (f"{theirs}.gamma_2", f"{ours}/feed_forward_scale", VECTOR),
    ]


def _conv_layer_norm(convolution: str, normalization: str, path: str) -> list[Row]:
    return [
        (f"{convolution}.weight", f"{path}/convolution/kernel", CONV),
        *affine(normalization, f"{path}/normalization"),
    ]


def projector_rows_of_authors(prefix: str, is_batch_norm: bool, wide: bool) -> list[Row]:
    """Return rows of the projector as the authors of both name them.

    Args:
        prefix: what stands before `stages`.
        is_batch_norm: whether convolutions are normalised over the batch.
        wide: whether a map is made narrower before it is made finer.
    """
    block: Callable[[str, str, str], list[Row]] = conv_norm if is_batch_norm else _conv_layer_norm
    theirs, ours = f"{prefix}stages.{{s}}.0", "projector/level{s}/c2f"
    rows = []
    for number in (1, 2):
        rows += block(f"{theirs}.cv{number}.conv", f"{theirs}.cv{number}.bn", f"{ours}/conv{number}")
        part = f"{theirs}.m.{{j}}.cv{number}"
        rows += block(f"{part}.conv", f"{part}.bn", f"{ours}/block{{j}}_conv{number}")
    sampling = f"{prefix}stages_sampling.{{s}}.{{t}}"
    return [
        *rows,
        *affine(f"{prefix}stages.{{s}}.1", "projector/level{s}/norm"),
        *conv_norm(f"{sampling}.0.conv", f"{sampling}.0.bn", "projector/level{s}/sampling{t}/convolution"),
        *conv(f"{sampling}.{int(wide)}", "projector/level{s}/sampling{t}/upsampling"),
    ]


def projector_rows_of_hugging_face(prefix: str, is_batch_norm: bool, wide: bool) -> list[Row]:
    """Return rows of the projector as transformers names them; one that is alone is no list there."""
    block: Callable[[str, str, str], list[Row]] = conv_norm if is_batch_norm else _conv_layer_norm
    theirs, level = prefix.removesuffix("."), "projector/level0"
    if is_batch_norm:
        theirs, level = f"{prefix}scale_layers.{{s}}", "projector/level{s}"
    c2f = f"{theirs}.projector_layer"
    rows = []
    for number in (1, 2):
        rows += block(f"{c2f}.conv{number}.conv", f"{c2f}.conv{number}.norm", f"{level}/c2f/conv{number}")
        part = f"{c2f}.bottlenecks.{{j}}.conv{number}"
        rows += block(f"{part}.conv", f"{part}.norm", f"{level}/c2f/block{{j}}_conv{number}")
    rows += affine(f"{theirs}.layer_norm", f"{level}/norm")
    if is_batch_norm:
        sampling = f"{theirs}.sampling_layers.{{t}}.layers"
        rows += conv_norm(f"{sampling}.0.conv", f"{sampling}.0.norm", f"{level}/sampling{{t}}/convolution")
        rows += conv(f"{sampling}.{int(wide)}", f"{level}/sampling{{t}}/upsampling")
    return rows


def _selection(before: str) -> list[Row]:
    """Return rows of what selects the first boxes, of all groups."""
    return [
        *linear(f"{before}enc_output.{{g}}", "proposals/group{g}_projection"),
        *affine(f"{before}enc_output_norm.{{g}}", "proposals/group{g}_norm"),
        *linear(f"{before}enc_out_class_embed.{{g}}", "encoder_class_head/group{g}"),
        *linear(f"{before}enc_out_bbox_embed.{{g}}.layers.{{j}}", "encoder_box_head/group{g}/layer{j}"),
    ]


def decoder_rows_of_authors() -> list[Row]:
    """Return rows of decoder, queries and heads as the authors of both name them."""
    theirs, ours = "transformer.decoder.layers.{i}", "decoder/layer{i}"
    return [
        *_selection("transformer."),
        ("refpoint_embed.weight", "reference_embedding/embeddings", VECTOR),
        ("query_feat.weight", "query_embedding/embeddings", VECTOR),
        *packed_attention(f"{theirs}.self_attn", f"{ours}/self_attention"),
        *affine(f"{theirs}.norm1", f"{ours}/self_attention_norm"),
        *deformable_attention(f"{theirs}.cross_attn", f"{ours}/cross_attention"),
        *affine(f"{theirs}.norm2", f"{ours}/cross_attention_norm"),
        *linear(f"{theirs}.linear1", f"{ours}/feed_forward/hidden"),
        *linear(f"{theirs}.linear2", f"{ours}/feed_forward/output"),
        *affine(f"{theirs}.norm3", f"{ours}/feed_forward_norm"),
        *affine("transformer.decoder.norm", "decoder/norm"),
        *linear("transformer.decoder.ref_point_head.layers.{j}", "decoder/query_position/layer{j}"),
        *heads(),
    ]


def decoder_rows_of_hugging_face(prefix: str) -> list[Row]:
    """Return rows of decoder and queries as transformers names them."""
    theirs, ours = f"{prefix}decoder.layers.{{i}}", "decoder/layer{i}"
    return [
        *_selection(prefix),
        (f"{prefix}reference_point_embed.weight", "reference_embedding/embeddings", VECTOR),
        (f"{prefix}query_feat.weight", "query_embedding/embeddings", VECTOR),
        *split_attention(f"{theirs}.self_attn", f"{ours}/self_attention", "o_proj"),
        *affine(f"{theirs}.self_attn_layer_norm", f"{ours}/self_attention_norm"),
        *deformable_attention(f"{theirs}.cross_attn", f"{ours}/cross_attention"),
        *affine(f"{theirs}.cross_attn_layer_norm", f"{ours}/cross_attention_norm"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/feed_forward/hidden"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/feed_forward/output"),
        *affine(f"{theirs}.layer_norm", f"{ours}/feed_forward_norm"),
        *affine(f"{prefix}decoder.layernorm", "decoder/norm"),
        *linear(f"{prefix}decoder.ref_point_head.layers.{{j}}", "decoder/query_position/layer{j}"),
    ]


def heads() -> list[Row]:
    """Return rows of the heads, which all name alike."""
    return [*linear("class_embed", "class_head"), *linear("bbox_embed.layers.{j}", "box_head/layer{j}")]


def side_of_table(rows: int) -> int:
    """Return the places along each side of a table of positions, which has one more row.

    Raises:
        ValueError: it is no square.
    """
    side = round(float(np.sqrt(rows - 1)))
    if side * side != rows - 1:
        raise ValueError(f"a table of {rows} positions, which are no square and one more")
    return side
