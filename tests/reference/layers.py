"""Single layers and functions of PyTorch and transformers."""

import numpy as np
import torch
from torch.nn import functional as F
from transformers import DeformableDetrConfig, DFineConfig, RTDetrConfig, RTDetrV2Config
from transformers.activations import ACT2FN
from transformers.models.d_fine.modeling_d_fine import DFineMultiscaleDeformableAttention
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention,
    DeformableDetrPreTrainedModel,
    MultiScaleDeformableAttention,
)
from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding
from transformers.models.rt_detr.modeling_rt_detr import RTDetrMultiscaleDeformableAttention
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import (
    RTDetrV2MultiscaleDeformableAttention,
    multi_scale_deformable_attention_v2,
)


def nearest(sizes):
    """For each (height, width, smaller height, smaller width) which cell of the large grid each small one takes.

    Cells are numbered row by row; the numbers are exact in float32.
    """
    found = []
    for height, width, *smaller in sizes:
        grid = np.arange(height * width, dtype=np.float32).reshape(1, 1, height, width)
        found.append(F.interpolate(torch.from_numpy(grid), size=smaller)[0])
    return found


def resize(array, size, mode):
    """`(batch, channels, height, width)` interpolated to another size."""
    return F.interpolate(torch.from_numpy(array), size=size, mode=mode)


def depthwise_convolution(x, kernel, d_outputs, stride):
    """A convolution of each channel alone, and the gradients of map and kernel, in float64 and in Keras' layout."""
    x, d_outputs = (torch.from_numpy(one).double().permute(0, 3, 1, 2) for one in (x, d_outputs))
    kernel = torch.from_numpy(kernel).double().permute(2, 3, 0, 1)
    given = [one.requires_grad_() for one in (x, kernel)]
    outputs = F.conv2d(*given, stride=stride, padding=kernel.shape[-1] // 2, groups=x.shape[1])
    d_x, d_kernel = torch.autograd.grad(outputs, given, d_outputs)
    return *(one.detach().permute(0, 2, 3, 1) for one in (outputs, d_x)), d_kernel.permute(2, 3, 0, 1)


def sine_position(mask, d_model):
    """DETR's normalised sine embedding of a mask `(batch, h, w)`, in Keras' layout."""
    layer = DetrSinePositionEmbedding(d_model // 2, normalize=True)
    shape = torch.Size((mask.shape[0], d_model, *mask.shape[1:]))
    return layer(shape, "cpu", torch.float32, torch.from_numpy(mask)).permute(0, 2, 3, 1)


def activation(name, x):
    """An activation of transformers."""
    return ACT2FN[name](torch.from_numpy(x))


@torch.no_grad()
def attention(d_model, heads, length, batch=2, seed=0):
    """Random weights of PyTorch's attention by name, random query, key and value, and what comes of them."""
    torch.manual_seed(seed)
    layer = torch.nn.MultiheadAttention(d_model, heads, batch_first=True).eval()
    layer.in_proj_bias.normal_()
    layer.out_proj.bias.normal_()
    given = torch.randn(3, batch, length, d_model)
    return layer.state_dict(), given, layer(*given)[0]


def batch_norm(gamma, beta, batches):
    """Batch normalisation of channels-last batches: each output in training, the statistics then, and inference."""
    layer = torch.nn.BatchNorm2d(len(gamma))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(gamma))
        layer.bias.copy_(torch.from_numpy(beta))
        outputs = [layer(torch.from_numpy(batch).permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for batch in batches]
        evaluated = layer.eval()(torch.from_numpy(batches[0]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return {
        "outputs": outputs,
        "mean": layer.running_mean,
        "variance": layer.running_var,
        "evaluated": evaluated,
    }


def deformable_attention(value, spatial_shapes, locations, weights, points_per_level, d_outputs, sampling="bilinear"):
    """Written out level by level with `grid_sample`, in float64: outputs, and the gradients of the three arrays."""
    arrays = [torch.from_numpy(one).double().requires_grad_() for one in (value, locations, weights)]
    (batch, _, heads, channels), queries = value.shape, locations.shape[1]
    tokens = arrays[0].split([height * width for height, width in spatial_shapes], dim=1)
    points = arrays[1].split(points_per_level, dim=3)
    parts = arrays[2].split(points_per_level, dim=3)
    total = 0
    for (height, width), level, point, part in zip(spatial_shapes, tokens, points, parts, strict=True):
        images = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        place = point.transpose(1, 2).reshape(batch * heads, queries, -1, 2)
        if sampling == "bilinear":
            grid = 2 * place - 1
            read = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        else:
            x = (place[..., 0].float() * width + 0.5).trunc().clamp(0, width - 1).long()
            y = (place[..., 1].float() * height + 0.5).trunc().clamp(0, height - 1).long()
            one = torch.arange(batch * heads)[:, None, None]
            read = images[one, :, y, x].permute(0, 3, 1, 2)
        read = read.reshape(batch, heads, channels, queries, -1)
        total = total + torch.einsum("bhcqp,bqhp->bqhc", read, part)
    outputs = total.reshape(batch, queries, heads * channels)
    found = torch.autograd.grad(outputs, arrays, torch.from_numpy(d_outputs).double(), allow_unused=True)
    gradients = [torch.zeros_like(a) if g is None else g for a, g in zip(arrays, found, strict=True)]
    return outputs, gradients


def transformers_deformable_attention(value, spatial_shapes, locations, weights):
    """What transformers computes, all levels of the same number of points."""
    levels = len(spatial_shapes)
    locations, weights = torch.from_numpy(locations), torch.from_numpy(weights)
    by_level = (*weights.shape[:3], levels, -1)
    kernel = MultiScaleDeformableAttention()
    arrays = torch.from_numpy(value), torch.tensor(spatial_shapes), spatial_shapes, None
    return kernel(*arrays, locations.reshape(*by_level, 2), weights.reshape(by_level), 64)


def transformers_discrete_attention(value, spatial_shapes, locations, weights, points_per_level):
    """RT-DETRv2's discrete sampling as transformers has it."""
    arrays = map(torch.from_numpy, (locations, weights))
    return multi_scale_deformable_attention_v2(
        torch.from_numpy(value), spatial_shapes, *arrays, points_per_level, "discrete"
    )


def _deformable_layer(kind, points):
    """An attention layer of transformers, 32 channels, 4 heads, 2 levels."""
    if kind == "deformable":
        config = DeformableDetrConfig(d_model=32, num_feature_levels=2)
        return DeformableDetrMultiscaleDeformableAttention(config, 4, points)
    if kind == "rt_detr":
        config = RTDetrConfig(d_model=32, decoder_n_levels=2, num_feature_levels=2)
        return RTDetrMultiscaleDeformableAttention(config, 4, points)
    if kind == "d_fine":
        config = DFineConfig(d_model=32, decoder_attention_heads=4, num_feature_levels=2, decoder_n_points=points)
        return DFineMultiscaleDeformableAttention(config)
    method = "discrete" if kind == "discrete" else "default"
    sizes = dict(d_model=32, decoder_attention_heads=4, decoder_n_levels=2, decoder_n_points=points)
    return RTDetrV2MultiscaleDeformableAttention(RTDetrV2Config(**sizes, decoder_method=method))


def deformable_layer(kind, points, spatial_shapes, references, mask, seed=0):
    """Random weights by name, a query, a value, a gradient; outputs, and gradients of query, value and weights."""
    torch.manual_seed(seed)
    layer = _deformable_layer(kind, points).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    references = torch.from_numpy(references)
    tokens = sum(height * width for height, width in spatial_shapes)
    query, d_outputs = torch.randn(2, *references.shape[:2], 32)
    value = torch.randn(len(references), tokens, 32)
    arrays = [query.requires_grad_(), value.requires_grad_()]
    outputs = layer(
        hidden_states=query,
        encoder_hidden_states=value,
        attention_mask=None if mask is None else torch.from_numpy(mask),
        reference_points=references,
        spatial_shapes=torch.tensor(spatial_shapes),
        spatial_shapes_list=spatial_shapes,
    )[0]
    found = torch.autograd.grad(outputs, [*arrays, *layer.parameters()], d_outputs, allow_unused=True)
    names = ["query", "value", *(name for name, _ in layer.named_parameters())]
    gradients = {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
    return layer.state_dict(), (query, value, d_outputs), outputs, gradients


def initial_offsets(heads, levels, points):
    """The biases that transformers gives the offsets of Deformable DETR."""
    config = DeformableDetrConfig(d_model=heads * 4, num_feature_levels=levels)
    layer = DeformableDetrMultiscaleDeformableAttention(config, heads, points)
    model = DeformableDetrPreTrainedModel.__new__(DeformableDetrPreTrainedModel)  # nothing but the rule is wanted of it
    model.config = config
    model._init_weights(layer)
    return layer.sampling_offsets.bias


def points(maps, points, mode="bilinear"):
    """Maps `(n, h, w)` read at points `(n, points, 2)`, x and y from 0 to 1, beyond the edge as at the edge."""
    maps, places = torch.from_numpy(maps)[:, None], 2 * torch.from_numpy(points)[:, :, None] - 1
    return F.grid_sample(maps, places, mode=mode, padding_mode="border", align_corners=False)[:, 0, :, 0]


def point_terms(logits, labels):
    """Cross-entropy and 1 − DICE of each row `(n, points)`."""
    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
    entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    probability = logits.sigmoid()
    dice = 1 - (2 * (probability * labels).sum(1) + 1) / (probability.sum(1) + labels.sum(1) + 1)
    return entropy, dice


def bicubic(x, size, antialias):
    """An array `(rows, columns, channels)` resized to (height, width)."""
    channels_first = torch.from_numpy(x).permute(2, 0, 1)[None]
    resized = F.interpolate(channels_first, size=tuple(size), mode="bicubic", align_corners=False, antialias=antialias)
    return resized[0].permute(1, 2, 0)
