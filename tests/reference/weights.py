"""Drawing a model's weights and statistics by chance, in ways that leave no error of a port unnoticed.

Each function fills all tensors of a module's `state_dict()` in place.
"""

import torch
from torch import nn


@torch.no_grad()
def telling(module, seed):
    """Values that leave no term of the model at 0 or 1, for models that compute something.

    Matrices and kernels are Xavier-uniform, queries and learned positions N(0, 1), norm scales and variances uniform in
    [0.5, 1.5], biases and means N(0, 0.1). Deep random networks map everything to one point, where a wrong attention
    would go unnoticed; so kernels that read rectified values are centred and attention is sharpened. Knows the names of
    `facebook` and of Hugging Face.
    """
    generator = torch.Generator().manual_seed(seed)
    has_points = any(name.endswith("sampling_offsets.bias") for name in module.state_dict())  # which tell queries apart
    heads = ("model.enc_bbox_head.layers.0.weight", "model.enc_out_bbox_embed.0.layers.0.weight")
    in_boxes = any(name in module.state_dict() for name in heads)  # points lie within a part of a small box
    for name, tensor in module.state_dict().items():
        if name.endswith(("num_batches_tracked", "n_points_scale", "num_points_scale", "decoder.up", ".reg_scale")):
            continue
        if name.endswith(
            ("query_embed.weight", "embeddings.weight", "denoising_class_embed.weight", "query_feat.weight")
        ):
            tensor.normal_(generator=generator)
        elif tensor.ndim > 1:
            nn.init.xavier_uniform_(tensor, generator=generator)
        elif name.endswith(("weight", "running_var", "lab.scale")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.normal_(0.0, 0.1, generator=generator)
        if tensor.ndim == 4 or name.endswith(("linear2.weight", "fc2.weight")):
            tensor.sub_(tensor.mean(tuple(range(1, tensor.ndim)), keepdim=True))
        if name.endswith("sampling_offsets.bias"):
            # or points lie on the centres of pixels, where gradients are one-sided
            tensor.normal_(std=4.0 if in_boxes else 1.0, generator=generator)
        elif name.endswith("sampling_offsets.weight"):
            tensor.mul_(0.1)  # or points go far astray by an error in the query's last digit
        elif name.endswith("in_proj_weight"):
            query_and_key = tensor[: 2 * tensor.shape[1]]
            query_and_key.mul_(3)
        elif name.endswith(("q_proj.weight", "k_proj.weight")) and not has_points:
            tensor.mul_(3 / 2**0.5)  # as in_proj_weight, whose three parts share a smaller Xavier limit
        elif name.endswith(("content_proj.weight", "pos_proj.weight", "pos_sine_proj.weight")):
            tensor.mul_(5)  # Conditional DETR's, in which the layers without position carry less of a query's place


@torch.no_grad()
def settled(module, seed):
    """As `telling`, and statistics near those that batch normalisation meets, so that images stay apart in any depth.

    The statistics are those of random images, means moved by a tenth of a deviation, variances by up to a half.
    """
    telling(module, seed)
    generator = torch.Generator().manual_seed(seed)

    def settle(norm, inputs):
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        norm.running_mean.normal_(std=0.1, generator=generator).mul_(variance.sqrt()).add_(mean)
        norm.running_var.uniform_(0.5, 1.5, generator=generator).mul_(variance)

    norms = [one for one in module.modules() if hasattr(one, "running_var")]
    hooks = [one.register_forward_pre_hook(settle) for one in norms]
    module.eval()(torch.randn(4, 3, 128, 128, generator=generator))
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def normal(module, seed):
    """Normal values, variances in [0.5, 1.5], and counters of 7."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.normal_(std=0.2, generator=generator)


@torch.no_grad()
def uniform(module, seed):
    """Values of each tensor's own in [0.5, 1.5], for models that compute nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.uniform_(0.5, 1.5, generator=generator)


@torch.no_grad()
def initial(module, seed):
    """What a detector of transformers draws before its first training."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            part.weight.normal_(std=0.02)
            if part.bias is not None:
                part.bias.zero_()
        elif isinstance(part, nn.Embedding):
            part.weight.normal_(std=1.0)
