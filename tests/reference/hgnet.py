"""HGNetV2 of transformers: the maps of its stages, with weights that are given."""

import torch
import transformers


@torch.no_grad()
def maps(fields, pixel_values, seed=0, training=False):
    """The maps of a model with random weights, batch statistics and affine blocks, in Keras' layout, and its weights.

    Args:
        fields: of its configuration.
        pixel_values: `(batch, height, width, 3)`.
        seed: of the weights.
        training: whether normalisation takes the batch's statistics.

    Returns:
        The maps of all stages, `state_dict()` before the pass, and after it.
    """
    torch.manual_seed(seed)
    stages = [f"stage{number + 1}" for number, _ in enumerate(fields["depths"])]
    model = transformers.HGNetV2Backbone(transformers.HGNetV2Config(**fields | {"out_features": stages})).train(
        training
    )
    for name, tensor in model.state_dict().items():
        noise = torch.randn_like(tensor) if tensor.is_floating_point() else 0
        if tensor.dim() == 4:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif name.endswith(("running_mean", "bias")):
            tensor.copy_(0.2 * noise)
        elif name.endswith(("weight", "scale")):
            tensor.copy_(1 + 0.2 * noise)
    model = model.to(torch.from_numpy(pixel_values).dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = model(torch.from_numpy(pixel_values).permute(0, 3, 1, 2)).feature_maps
    return [x.permute(0, 2, 3, 1) for x in found], before, model.state_dict()


def parameters(fields):
    """How many parameters a model has, which is not given memory."""
    with torch.device("meta"):
        model = transformers.HGNetV2Backbone(transformers.HGNetV2Config(**fields))
    return sum(parameter.numel() for parameter in model.parameters())
