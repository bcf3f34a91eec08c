"""The reference of the parity tests: DETR in plain PyTorch, with every intermediate tensor handed out by name.

The module tree is laid out so that `state_dict()` carries the names of facebookresearch/detr's published checkpoints
(`backbone.0.body.layer1.0.conv1.weight`, `transformer.encoder.layers.0.self_attn.in_proj_weight`, ...); the layers are
PyTorch's own. Nothing is shared with the package under test, and there is no dropout: this is the model at inference.

Source: Carion et al. 2020, "End-to-End Object Detection with Transformers", section 3.2 and appendix A.3-A.4.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by stored statistics; all four vectors are buffers."""

    def __init__(self, channels):
        super().__init__()
        for name, fill in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), fill))

    def forward(self, x):
        scale = self.weight * torch.rsqrt(self.running_var + 1e-5)
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


def conv(inputs, outputs, kernel, stride=1, dilation=1):
    """A convolution without bias that keeps the size at stride 1 (symmetric padding)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False)


class Block(nn.Module):
    """A residual block: two 3x3 (basic) or 1x1, 3x3, 1x1 (bottleneck, stride in the 3x3: "ResNet v1.5").

    `first_dilation` belongs to the convolution that may carry the stride, `dilation` to every later 3x3.
    """

    def __init__(self, inputs, outputs, layer_type, stride, first_dilation, dilation):
        super().__init__()
        if layer_type == "basic":
            convolutions = [
                conv(inputs, outputs, 3, stride, first_dilation),
                conv(outputs, outputs, 3, 1, dilation),
            ]
        else:
            width = outputs // 4
            convolutions = [
                conv(inputs, width, 1),
                conv(width, width, 3, stride, first_dilation),
                conv(width, outputs, 1),
            ]
        self.depth = len(convolutions)
        for k, convolution in enumerate(convolutions, start=1):
            self.add_module(f"conv{k}", convolution)
            self.add_module(f"bn{k}", FrozenBatchNorm(convolution.out_channels))
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), FrozenBatchNorm(outputs))
        else:
            self.downsample = nn.Identity()

    def forward(self, x):
        y = x
        for k in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{k}")(self.get_submodule(f"conv{k}")(y))
            y = F.relu(y) if k < self.depth else y
        return F.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """ResNet without its classifier; `forward` returns the map after each stage: C2, C3, ..."""

    def __init__(self, depths, widths, stem_width, layer_type, dilated):
        super().__init__()
        self.conv1 = conv(3, stem_width, 7, stride=2)
        self.bn1 = FrozenBatchNorm(stem_width)
        self.stages = len(depths)
        inputs = stem_width
        for stage, (depth, outputs) in enumerate(zip(depths, widths, strict=True), start=1):
            dc5 = dilated and stage == self.stages
            stride = 1 if stage == 1 or dc5 else 2
            dilation = 2 if dc5 else 1
            blocks = [Block(inputs, outputs, layer_type, stride, 1, dilation)]
            blocks += [Block(outputs, outputs, layer_type, 1, dilation, dilation) for _ in range(depth - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            inputs = outputs

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), kernel_size=3, stride=2, padding=1)
        maps = []
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
            maps.append(x)
        return maps


def sine_position(mask, d_model):
    """The normalised sine embedding of the valid cells of `mask` `(batch, h, w)`: `(batch, d_model, h, w)`, y first."""
    features = d_model // 2
    frequency = 10000.0 ** (2 * torch.arange(features).div(2, rounding_mode="floor") / features)
    halves = []
    for axis in (1, 2):
        count = mask.float().cumsum(axis)
        total = count.select(axis, -1).unsqueeze(axis)
        angle = (count / (total + 1e-6) * (2 * math.pi))[..., None] / frequency
        halves.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2))
    return torch.cat(halves, dim=-1).permute(0, 3, 1, 2)


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each normalised after (as published) or before."""

    def __init__(self, d_model, heads, ffn_dim, pre_norm):
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = nn.MultiheadAttention(d_model, heads, batch_first=True)
        self.linear1 = nn.Linear(d_model, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def residual(self, x, norm, function):
        return x + function(norm(x)) if self.pre_norm else norm(x + function(x))

    def attend_self(self, x, pos, padding=None):
        return self.self_attn(x + pos, x + pos, x, key_padding_mask=padding, need_weights=False)[0]

    def perceptron(self, x):
        return self.linear2(F.relu(self.linear1(x)))

    def forward(self, x, pos, padding):
        x = self.residual(x, self.norm1, lambda y: self.attend_self(y, pos, padding))
        return self.residual(x, self.norm2, self.perceptron)


class DecoderLayer(EncoderLayer):
    """An encoder layer over the queries with attention to the image in its middle."""

    def __init__(self, d_model, heads, ffn_dim, pre_norm):
        super().__init__(d_model, heads, ffn_dim, pre_norm)
        self.multihead_attn = nn.MultiheadAttention(d_model, heads, batch_first=True)
        self.norm3 = nn.LayerNorm(d_model)

    def forward(self, x, query_pos, memory, pos, padding):
        def attend_image(y):
            q, k = y + query_pos, memory + pos
            return self.multihead_attn(q, k, memory, key_padding_mask=padding, need_weights=False)[0]

        x = self.residual(x, self.norm1, lambda y: self.attend_self(y, query_pos))
        x = self.residual(x, self.norm2, attend_image)
        return self.residual(x, self.norm3, self.perceptron)


class FacebookDetr(nn.Module):
    """DETR with the weight names of facebookresearch/detr.

    Args:
        depths: blocks of each ResNet stage; the number of stages is free.
        widths: output channels of each stage (a bottleneck works at a quarter of them).
        stem_width: channels of the first convolution.
        layer_type: "bottleneck" or "basic".
        dilated: DC5, the last stage at stride 1 with dilated 3x3 convolutions.
        pre_norm: normalise before each sub-layer (Table Transformer), which adds `transformer.encoder.norm`.
    """

    def __init__(
        self,
        depths=(3, 4, 6, 3),
        widths=(256, 512, 1024, 2048),
        stem_width=64,
        layer_type="bottleneck",
        dilated=False,
        d_model=256,
        heads=8,
        ffn_dim=2048,
        encoder_layers=6,
        decoder_layers=6,
        num_queries=100,
        num_labels=91,
        pre_norm=False,
    ):
        super().__init__()
        body = ResNet(depths, widths, stem_width, layer_type, dilated)
        self.backbone = nn.ModuleList([nn.ModuleDict({"body": body})])
        self.input_proj = nn.Conv2d(widths[-1], d_model, 1)
        self.query_embed = nn.Embedding(num_queries, d_model)
        layer = (d_model, heads, ffn_dim, pre_norm)
        encoder = nn.ModuleDict({"layers": nn.ModuleList(EncoderLayer(*layer) for _ in range(encoder_layers))})
        if pre_norm:
            encoder["norm"] = nn.LayerNorm(d_model)
        decoder = nn.ModuleDict({"layers": nn.ModuleList(DecoderLayer(*layer) for _ in range(decoder_layers))})
        decoder["norm"] = nn.LayerNorm(d_model)
        self.transformer = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        self.class_embed = nn.Linear(d_model, num_labels + 1)
        sizes = ((d_model, d_model), (d_model, d_model), (d_model, 4))
        self.bbox_embed = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(*size) for size in sizes)})

    def boxes(self, hidden):
        first, second, last = self.bbox_embed["layers"]
        return last(F.relu(second(F.relu(first(hidden))))).sigmoid()

    def forward(self, pixel_values, pixel_mask=None):
        """Run the model and return every stage by name.

        Args:
            pixel_values: `(batch, 3, height, width)` float32.
            pixel_mask: `(batch, height, width)`, 1 = valid; all valid if None.

        Returns:
            dict of tensors; `(h, w)` is the size of the last feature map, `tokens` is `h * w` in row-major order:
            `C2`, `C3`, ... `(batch, channels, h_i, w_i)`; `mask` `(batch, h, w)` bool, True = valid;
            `pos` and `projected` `(batch, d_model, h, w)`;
            `encoder_{i}` and `memory` (what the decoder reads) `(batch, tokens, d_model)`;
            `decoder_{i}` (raw) and `decoder_norm_{i}` (after `decoder.norm`) `(batch, queries, d_model)`;
            `logits` `(batch, queries, num_labels + 1)`, `pred_boxes` `(batch, queries, 4)` cxcywh in [0, 1];
            `aux_logits`, `aux_boxes` the same of all decoder layers but the last, stacked on axis 1.
        """
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0])
        maps = self.backbone[0]["body"](pixel_values)
        taps = {f"C{level}": feature_map for level, feature_map in enumerate(maps, start=2)}
        # "nearest" is PyTorch's legacy rule, floor(i * input / output): not the nearest cell centre.
        mask = F.interpolate(pixel_mask[:, None].float(), size=maps[-1].shape[-2:], mode="nearest")[:, 0].bool()
        pos = sine_position(mask, self.query_embed.embedding_dim)
        projected = self.input_proj(maps[-1])
        taps.update(mask=mask, pos=pos, projected=projected)

        x, pos, padding = projected.flatten(2).mT, pos.flatten(2).mT, ~mask.flatten(1)
        encoder, decoder = self.transformer["encoder"], self.transformer["decoder"]
        for i, layer in enumerate(encoder["layers"]):
            x = taps[f"encoder_{i}"] = layer(x, pos, padding)
        memory = taps["memory"] = encoder["norm"](x) if "norm" in encoder else x

        query_pos = self.query_embed.weight.expand(len(x), -1, -1)
        x = torch.zeros_like(query_pos)
        normed = []
        for i, layer in enumerate(decoder["layers"]):
            x = taps[f"decoder_{i}"] = layer(x, query_pos, memory, pos, padding)
            normed.append(decoder["norm"](x))
            taps[f"decoder_norm_{i}"] = normed[-1]
        hidden = torch.stack(normed, dim=1)
        logits, boxes = self.class_embed(hidden), self.boxes(hidden)
        taps.update(logits=logits[:, -1], pred_boxes=boxes[:, -1], aux_logits=logits[:, :-1], aux_boxes=boxes[:, :-1])
        return taps
