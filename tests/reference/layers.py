"""Single layers and functions of PyTorch and transformers."""

import numpy as np
import torch
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding


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
