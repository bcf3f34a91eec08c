"""How D-FINE's authors, DEIM's and Hugging Face name its tensors.

What is the same as in RT-DETR is in `rt_detr_names`. Of Hugging Face's, version 5 renamed three parts in memory and
still writes the old names to disk.
"""

from __future__ import annotations

from port_weights.families.hgnet_v2 import depthwise_conv_norm
from port_weights.families.rows import affine, conv_norm, linear, packed_attention
from port_weights.families.rt_detr_names import heads, rows_of_layers, selection
from port_weights.layouts import VECTOR
from port_weights.tables import Row

_HUGGING_FACE, _AUTHORS = "decoder.layers.{i}", "decoder.decoder.layers.{i}"
# A tensor that each is known by, and no other member's file has at that place.
OF_HUGGING_FACE = f"{_HUGGING_FACE.format(i=0)}.gateway.gate.weight"
OF_AUTHORS = f"{_AUTHORS.format(i=0)}.gateway.gate.weight"
# By which they are found inside of another module: neither is the other's end, as those above are.
PART_OF_AUTHORS, PART_OF_HUGGING_FACE = "encoder.input_proj.0.conv.weight", "encoder_input_proj.0.0.weight"
NUMBERS = ("up", "reg_scale")  # of the decoder, which nothing trains
_LEVELS = (("fpn_blocks", "top_down"), ("pan_blocks", "bottom_up"))


def _convolution(name: str, path: str) -> list[Row]:
    return conv_norm(f"{name}.conv", f"{name}.norm", f"encoder/{path}")


def _between_levels(down: str) -> list[Row]:
    """Return rows of the convolutions beside the fusion blocks; `down` is what the two of a way down are called."""
    first, second = f"{down}1", f"{down}2"
    return [
        *_convolution("encoder.lateral_convs.{i}", "lateral{i}"),
        *_convolution(first, "downsample{i}/conv1"),
        *depthwise_conv_norm(f"{second}.conv", f"{second}.norm", "encoder/downsample{i}/conv2"),
    ]


def _blocks(name: str, path: str) -> list[Row]:
    """Return rows of a block of RepVGG blocks."""
    return [
        *_convolution(f"{name}.conv{{k}}", f"{path}/conv{{k}}"),
        *_convolution(f"{name}.bottlenecks.{{b}}.conv1", f"{path}/block{{b}}/dense"),
        *_convolution(f"{name}.bottlenecks.{{b}}.conv2", f"{path}/block{{b}}/pointwise"),
    ]


def _fusion_of_authors() -> list[Row]:
    rows = _between_levels("encoder.downsample_convs.{i}.0.cv")
    for theirs, ours in _LEVELS:
        name, path = f"encoder.{theirs}.{{i}}", f"{ours}{{i}}"
        for end in (1, 4):
            rows += _convolution(f"{name}.cv{end}", f"{path}/conv{end}")
        for part in (1, 2):
            rows += _blocks(f"{name}.cv{part + 1}.0", f"{path}/fusion{part}")
            rows += _convolution(f"{name}.cv{part + 1}.1", f"{path}/conv{part + 1}")
    return rows


def _fusion_of_hugging_face() -> list[Row]:
    rows = _between_levels("encoder.downsample_convs.{i}.conv")
    for theirs, ours in _LEVELS:
        name, path = f"encoder.{theirs}.{{i}}", f"{ours}{{i}}"
        rows += _convolution(f"{name}.conv{{k}}", f"{path}/conv{{k}}")
        for part in (1, 2):
            rows += _blocks(f"{name}.csp_rep{part}", f"{path}/fusion{part}")
    return rows


def _gated(name: str, attention: str) -> list[Row]:
    """Return rows of a decoder layer's attention to the image, and of its gate."""
    ours = "decoder/layer{i}"
    return [
        *linear(f"{name}.{attention}.sampling_offsets", f"{ours}/cross_attention/sampling_offsets"),
        *linear(f"{name}.{attention}.attention_weights", f"{ours}/cross_attention/attention_weights"),
        *linear(f"{name}.gateway.gate", f"{ours}/gate/gate"),
        *affine(f"{name}.gateway.norm", f"{ours}/gate/norm"),
    ]


def _of_decoder(before: str, qualities: str) -> list[Row]:
    """Return rows of what D-FINE's decoder has beyond RT-DETR's, but for its layers."""
    return [
        *((f"{before}{name}", f"decoder/{name}", VECTOR) for name in NUMBERS),
        *linear(f"{before}pre_bbox_head.layers.{{j}}", "pre_box_head/layer{j}"),
        *linear(f"{qualities}lqe_layers.{{i}}.reg_conf.layers.{{j}}", "quality_head/layer{i}/layer{j}"),
    ]


def rows_of_authors(projection: tuple[str, str], output: tuple[str, str]) -> list[Row]:
    """Return the authors' table but for the backbone; the two parts of projections and of proposals have two names."""
    encoder, aifi, ours = "encoder.encoder.{j}.layers.{i}", "encoder/aifi{j}/layer{i}", "decoder/layer{i}"
    convolution, normalization = (f"encoder.input_proj.{{l}}.{part}" for part in projection)
    return [
        *conv_norm(convolution, normalization, "input_projection/level{l}"),
        *packed_attention(f"{encoder}.self_attn", f"{aifi}/self_attention"),
        *affine(f"{encoder}.norm1", f"{aifi}/self_attention_norm"),
        *linear(f"{encoder}.linear1", f"{aifi}/feed_forward/hidden"),
        *linear(f"{encoder}.linear2", f"{aifi}/feed_forward/output"),
        *affine(f"{encoder}.norm2", f"{aifi}/feed_forward_norm"),
        *_fusion_of_authors(),
        *conv_norm("decoder.input_proj.{l}.conv", "decoder.input_proj.{l}.norm", "decoder_projection/level{l}"),
        *selection("decoder.", *output),
        ("decoder.tgt_embed.weight", "content_embedding/embeddings", VECTOR),
        *_of_decoder("decoder.", "decoder.decoder."),
        *packed_attention(f"{_AUTHORS}.self_attn", f"{ours}/self_attention"),
        *affine(f"{_AUTHORS}.norm1", f"{ours}/self_attention_norm"),
        *_gated(_AUTHORS, "cross_attn"),
        *linear(f"{_AUTHORS}.linear1", f"{ours}/feed_forward/hidden"),
        *linear(f"{_AUTHORS}.linear2", f"{ours}/feed_forward/output"),
        *affine(f"{_AUTHORS}.norm3", f"{ours}/feed_forward_norm"),
        *heads("decoder.dec_score_head", "decoder.dec_bbox_head"),
    ]


def rows_of_hugging_face(is_in_memory: bool) -> list[Row]:
    """Return transformers' table but for backbone and heads."""
    names = (
        ("aifi", "o_proj", "mlp.layers.0", "mlp.layers.1") if is_in_memory else ("encoder", "out_proj", "fc1", "fc2")
    )
    return [
        *conv_norm("encoder_input_proj.{l}.0", "encoder_input_proj.{l}.1", "input_projection/level{l}"),
        *rows_of_layers(*names),
        *_fusion_of_hugging_face(),
        *conv_norm("decoder_input_proj.{l}.0", "decoder_input_proj.{l}.1", "decoder_projection/level{l}"),
        *selection("", "0", "1"),
        ("weight_embedding.weight", "content_embedding/embeddings", VECTOR),
        *_of_decoder("decoder.", "decoder."),
        *_gated(_HUGGING_FACE, "encoder_attn"),
    ]
