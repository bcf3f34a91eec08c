"""The names of the weights of DETR and its relatives: one declarative table per naming scheme, read in both directions.

A row holds a PyTorch name, a Keras path and the layout between them. `{i}` stands for a number, the same on both sides;
`{i-1}` on the PyTorch side for that number less one. `port_weights.schemes` puts the tables together.
"""

from __future__ import annotations

from port_weights.layouts import CONV, DENSE, HEADS_BIAS, HEADS_IN, HEADS_OUT, VECTOR, Layout, packed
from tfdetr_keras.models.detr_segmentation import MASK_HEAD_MAPS

Row = tuple[str, str, Layout]


def _affine(torch_name: str, keras_path: str) -> list[Row]:
    return [
        (f"{torch_name}.weight", f"{keras_path}/gamma", VECTOR),
        (f"{torch_name}.bias", f"{keras_path}/beta", VECTOR),
    ]


def _norm(torch_name: str, keras_path: str) -> list[Row]:
    return [
        *_affine(torch_name, keras_path),
        (f"{torch_name}.running_mean", f"{keras_path}/moving_mean", VECTOR),
        (f"{torch_name}.running_var", f"{keras_path}/moving_variance", VECTOR),
    ]


def _conv_norm(convolution: str, normalization: str, keras_path: str) -> list[Row]:
    return [
        (f"{convolution}.weight", f"{keras_path}/convolution/kernel", CONV),
        *_norm(normalization, f"{keras_path}/normalization"),
    ]


def _linear(torch_name: str, keras_path: str) -> list[Row]:
    return [
        (f"{torch_name}.weight", f"{keras_path}/kernel", DENSE),
        (f"{torch_name}.bias", f"{keras_path}/bias", VECTOR),
    ]


def _conv(torch_name: str, keras_path: str) -> list[Row]:
    return [
        (f"{torch_name}.weight", f"{keras_path}/kernel", CONV),
        (f"{torch_name}.bias", f"{keras_path}/bias", VECTOR),
    ]


def _output_projection(torch_name: str, keras_path: str) -> list[Row]:
    return [
        (f"{torch_name}.weight", f"{keras_path}/attention_output/kernel", HEADS_OUT),
        (f"{torch_name}.bias", f"{keras_path}/attention_output/bias", VECTOR),
    ]


def _split_attention(torch_name: str, keras_path: str, output: str) -> list[Row]:
    """Attention with query, key and value as layers of their own (Hugging Face)."""
    names = {f"{torch_name}.{role[0]}_proj": role for role in ("query", "key", "value")}
    return _output_projection(f"{torch_name}.{output}", keras_path) + _split_projections(names, keras_path)


def _split_projections(names: dict[str, str], keras_path: str) -> list[Row]:
    """Projections of attention that are layers of their own: PyTorch name → role."""
    rows = []
    for torch_name, role in names.items():
        rows.append((f"{torch_name}.weight", f"{keras_path}/{role}/kernel", HEADS_IN))
        rows.append((f"{torch_name}.bias", f"{keras_path}/{role}/bias", HEADS_BIAS))
    return rows


def _packed_attention(torch_name: str, keras_path: str) -> list[Row]:
    """Attention as `torch.nn.MultiheadAttention` keeps it (facebookresearch)."""
    rows = _output_projection(f"{torch_name}.out_proj", keras_path)
    for part, role in enumerate(("query", "key", "value")):
        rows.append((f"{torch_name}.in_proj_weight", f"{keras_path}/{role}/kernel", packed(HEADS_IN, part)))
        rows.append((f"{torch_name}.in_proj_bias", f"{keras_path}/{role}/bias", packed(HEADS_BIAS, part)))
    return rows


TORCHVISION_BACKBONE: list[Row] = [
    *_conv_norm("conv1", "bn1", "backbone/stem"),
    *_conv_norm("layer{s}.{b}.conv{k}", "layer{s}.{b}.bn{k}", "backbone/stage{s}/block{b}/conv{k}"),
    *_conv_norm("layer{s}.{b}.downsample.0", "layer{s}.{b}.downsample.1", "backbone/stage{s}/block{b}/shortcut"),
]

_BLOCK = "encoder.stages.{s-1}.layers.{b}"
HUGGING_FACE_BACKBONE: list[Row] = [
    *_conv_norm("embedder.embedder.convolution", "embedder.embedder.normalization", "backbone/stem"),
    *_conv_norm(
        f"{_BLOCK}.layer.{{k-1}}.convolution",
        f"{_BLOCK}.layer.{{k-1}}.normalization",
        "backbone/stage{s}/block{b}/conv{k}",
    ),
    *_conv_norm(
        f"{_BLOCK}.shortcut.convolution", f"{_BLOCK}.shortcut.normalization", "backbone/stage{s}/block{b}/shortcut"
    ),
]

# Conditional DETR's projections by what they are called in the decoder layer: with "sa" for self-attention.
_CONDITIONAL_SELF = {
    "qcontent": "query",
    "kcontent": "key",
    "qpos": "query_position",
    "kpos": "key_position",
    "v": "value",
}
_CONDITIONAL_CROSS = {**_CONDITIONAL_SELF, "qpos_sine": "query_sine"}


def _conditional_attention(layer: str, self_name: str, cross_name: str) -> list[Row]:
    """Conditional DETR's two attentions of a decoder layer, as its authors and Hugging Face on disk name them."""
    self_path, cross_path = "decoder/layer{i}/self_attention", "decoder/layer{i}/cross_attention"
    in_self = {f"{layer}.sa_{name}_proj": role for name, role in _CONDITIONAL_SELF.items()}
    in_cross = {f"{layer}.ca_{name}_proj": role for name, role in _CONDITIONAL_CROSS.items()}
    return [
        *_output_projection(f"{layer}.{self_name}.out_proj", self_path),
        *_split_projections(in_self, self_path),
        *_output_projection(f"{layer}.{cross_name}.out_proj", cross_path),
        *_split_projections(in_cross, cross_path),
    ]


def _conditional_attention_in_memory(layer: str) -> list[Row]:
    """The same in Hugging Face's version 5."""
    rows = []
    for torch_name, keras_name, names in (
        ("self_attn", "self_attention", _CONDITIONAL_SELF),
        ("encoder_attn", "cross_attention", _CONDITIONAL_CROSS),
    ):
        path = f"decoder/layer{{i}}/{keras_name}"
        spelled = {name.replace("content", "_content").replace("pos", "_pos", 1): role for name, role in names.items()}
        rows += _output_projection(f"{layer}.{torch_name}.o_proj", path)
        rows += _split_projections({f"{layer}.{torch_name}.{name}_proj": role for name, role in spelled.items()}, path)
    return rows


def _conditional_points(decoder: str) -> list[Row]:
    """Conditional DETR's reference points and their transformation."""
    return [
        *_linear(f"{decoder}.ref_point_head.layers.{{i}}", "decoder/reference_point_head/layer{i}"),
        *_linear(f"{decoder}.query_scale.layers.{{i}}", "decoder/query_scale/layer{i}"),
    ]


def _facebook_transformer(decoder_attention: list[Row]) -> list[Row]:
    return [
        *_conv("input_proj", "input_projection"),
        ("query_embed.weight", "query_embedding/embeddings", VECTOR),
        ("backbone.1.row_embed.weight", "position_embedding/row", VECTOR),
        ("backbone.1.col_embed.weight", "position_embedding/column", VECTOR),
        *_packed_attention("transformer.encoder.layers.{i}.self_attn", "encoder/layer{i}/self_attention"),
        *_affine("transformer.encoder.layers.{i}.norm1", "encoder/layer{i}/self_attention_norm"),
        *_linear("transformer.encoder.layers.{i}.linear1", "encoder/layer{i}/feed_forward/hidden"),
        *_linear("transformer.encoder.layers.{i}.linear2", "encoder/layer{i}/feed_forward/output"),
        *_affine("transformer.encoder.layers.{i}.norm2", "encoder/layer{i}/feed_forward_norm"),
        *_affine("transformer.encoder.norm", "encoder/norm"),
        *_affine("transformer.decoder.layers.{i}.norm1", "decoder/layer{i}/self_attention_norm"),
        *_affine("transformer.decoder.layers.{i}.norm2", "decoder/layer{i}/cross_attention_norm"),
        *_linear("transformer.decoder.layers.{i}.linear1", "decoder/layer{i}/feed_forward/hidden"),
        *_linear("transformer.decoder.layers.{i}.linear2", "decoder/layer{i}/feed_forward/output"),
        *_affine("transformer.decoder.layers.{i}.norm3", "decoder/layer{i}/feed_forward_norm"),
        *_affine("transformer.decoder.norm", "decoder/norm"),
        *decoder_attention,
    ]


_FACEBOOK_LAYER = "transformer.decoder.layers.{i}"
FACEBOOK_TRANSFORMERS = {
    "facebookresearch": _facebook_transformer(
        [
            *_packed_attention(f"{_FACEBOOK_LAYER}.self_attn", "decoder/layer{i}/self_attention"),
            *_packed_attention(f"{_FACEBOOK_LAYER}.multihead_attn", "decoder/layer{i}/cross_attention"),
        ]
    ),
    # Atten4Vis/ConditionalDETR
    "conditional-detr": _facebook_transformer(
        _conditional_attention(_FACEBOOK_LAYER, "self_attn", "cross_attn") + _conditional_points("transformer.decoder")
    ),
}
FACEBOOK_HEADS: list[Row] = [
    *_linear("class_embed", "class_head"),
    *_linear("bbox_embed.layers.{i}", "box_head/layer{i}"),
]


def _hugging_face_transformer(
    output: str,
    feed_forward: str,
    position: str = "position_embedding",
    decoder_attention: list[Row] | None = None,
) -> list[Row]:
    """Hugging Face's table; version 5 renamed two parts in memory but still writes the old names to disk."""
    if decoder_attention is None:
        decoder_attention = [
            *_split_attention("decoder.layers.{i}.self_attn", "decoder/layer{i}/self_attention", output),
            *_split_attention("decoder.layers.{i}.encoder_attn", "decoder/layer{i}/cross_attention", output),
        ]
    return [
        *_conv("input_projection", "input_projection"),
        ("query_position_embeddings.weight", "query_embedding/embeddings", VECTOR),
        (f"{position}.row_embeddings.weight", "position_embedding/row", VECTOR),
        (f"{position}.column_embeddings.weight", "position_embedding/column", VECTOR),
        *_split_attention("encoder.layers.{i}.self_attn", "encoder/layer{i}/self_attention", output),
        *_affine("encoder.layers.{i}.self_attn_layer_norm", "encoder/layer{i}/self_attention_norm"),
        *_linear(f"encoder.layers.{{i}}.{feed_forward}fc1", "encoder/layer{i}/feed_forward/hidden"),
        *_linear(f"encoder.layers.{{i}}.{feed_forward}fc2", "encoder/layer{i}/feed_forward/output"),
        *_affine("encoder.layers.{i}.final_layer_norm", "encoder/layer{i}/feed_forward_norm"),
        *_affine("encoder.layernorm", "encoder/norm"),
        *decoder_attention,
        *_affine("decoder.layers.{i}.self_attn_layer_norm", "decoder/layer{i}/self_attention_norm"),
        *_affine("decoder.layers.{i}.encoder_attn_layer_norm", "decoder/layer{i}/cross_attention_norm"),
        *_linear(f"decoder.layers.{{i}}.{feed_forward}fc1", "decoder/layer{i}/feed_forward/hidden"),
        *_linear(f"decoder.layers.{{i}}.{feed_forward}fc2", "decoder/layer{i}/feed_forward/output"),
        *_affine("decoder.layers.{i}.final_layer_norm", "decoder/layer{i}/feed_forward_norm"),
        *_affine("decoder.layernorm", "decoder/norm"),
    ]


_HUGGING_FACE_LAYER = "decoder.layers.{i}"
_CONDITIONAL_POINTS = _conditional_points("decoder")
HUGGING_FACE_TRANSFORMERS = {
    "hugging-face": _hugging_face_transformer(output="out_proj", feed_forward=""),
    # Version 4 kept learned positions, which no other name tells apart, in the backbone.
    "hugging-face-4": _hugging_face_transformer("out_proj", "", position="backbone.position_embedding"),
    "hugging-face-in-memory": _hugging_face_transformer(output="o_proj", feed_forward="mlp."),
    "conditional-hugging-face": _hugging_face_transformer(
        "out_proj",
        "",
        decoder_attention=_conditional_attention(_HUGGING_FACE_LAYER, "self_attn", "encoder_attn")
        + _CONDITIONAL_POINTS,
    ),
    "conditional-hugging-face-in-memory": _hugging_face_transformer(
        "o_proj", "mlp.", decoder_attention=_conditional_attention_in_memory(_HUGGING_FACE_LAYER) + _CONDITIONAL_POINTS
    ),
}
HUGGING_FACE_HEADS: list[Row] = [
    *_linear("class_labels_classifier", "class_head"),
    *_linear("bbox_predictor.layers.{i}", "box_head/layer{i}"),
]


def _group_norm_conv(convolution: str, normalization: str, keras_path: str) -> list[Row]:
    return [
        *_conv(convolution, f"{keras_path}/convolution"),
        *_affine(normalization, f"{keras_path}/group_norm"),
    ]


# The mask head around a detector stands beside it, without a prefix.
MASK_HEAD: list[Row] = [
    *_linear("bbox_attention.q_linear", "mask_attention/query"),
    *_linear("bbox_attention.k_linear", "mask_attention/key"),
    *_group_norm_conv("mask_head.lay{i}", "mask_head.gn{i}", "mask_head/conv{i}"),
    *_conv("mask_head.adapter{i}", "mask_head/adapter{i}"),
    *_conv("mask_head.out_lay", "mask_head/output"),
]
MASK_HEAD_IN_MEMORY: list[Row] = [
    *_linear("bbox_attention.q_proj", "mask_attention/query"),
    *_linear("bbox_attention.k_proj", "mask_attention/key"),
    *(
        row
        for i in (1, 2)
        for row in _group_norm_conv(f"mask_head.conv{i}.conv", f"mask_head.conv{i}.norm", f"mask_head/conv{i}")
    ),
    *(
        row
        for i in range(MASK_HEAD_MAPS)
        for row in (
            *_conv(f"mask_head.fpn_stages.{i}.fpn_adapter", f"mask_head/adapter{i + 1}"),
            *_group_norm_conv(
                f"mask_head.fpn_stages.{i}.refine.conv",
                f"mask_head.fpn_stages.{i}.refine.norm",
                f"mask_head/conv{i + 3}",
            ),
        )
    ),
    *_conv("mask_head.output_conv", "mask_head/output"),
]

# Rows stand in a checkpoint behind these, where it is not a bare state_dict of the part.
HUGGING_FACE_MODEL = "model."
DETECTOR_OF_SEGMENTATION = "detr."
