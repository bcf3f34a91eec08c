"""PyTorch's AdamW on given gradients."""

import numpy as np
import torch


def adamw(start, gradients, rates, clip, accumulate=1, decays=None, **options):
    """The parameters after AdamW's steps.

    Args:
        start: the parameters, one group each.
        gradients: for each batch those of all parameters.
        rates: learning rate of each.
        clip: the largest norm of all gradients together, or None.
        decays: weight decay of each, where they differ.
        accumulate: the means of so many batches make a step.
        **options: of `torch.optim.AdamW`.
    """
    found = [torch.nn.Parameter(torch.from_numpy(value)) for value in start]
    groups = [{"params": [parameter], "lr": rate} for parameter, rate in zip(found, rates, strict=True)]
    for group, decay in zip(groups, decays or (), strict=False):
        group["weight_decay"] = decay
    optimizer = torch.optim.AdamW(groups, **options)
    for step in range(0, len(gradients), accumulate):
        taken = gradients[step : step + accumulate]
        for place, parameter in enumerate(found):
            parameter.grad = torch.from_numpy(np.mean([one[place] for one in taken], axis=0))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(found, clip)
        optimizer.step()
    return found
