"""LW-DETR and RF-DETR of transformers: the stages, and in training mode the loss of all groups with its gradients.

In evaluation mode transformers matches the queries of the one group as if they were all groups': its loss is wrong
there, so that `losses` tells it that there is one.
"""

import copy

import torch

from reference.losses import targets_of_images
from reference.models import build, inputs


def stages(model, pixels, mask=None):
    """The stages of a batch, of all groups in training mode, and of the first in evaluation mode."""
    caught, base = {}, model.model

    def catch(name):
        return lambda module, inputs, output: caught.__setitem__(name, output)

    encoder = base.backbone
    parts = {"taps": encoder.backbone, "all": encoder, "base": base}
    hooks = [part.register_forward_hook(catch(name)) for name, part in parts.items()]
    try:
        outputs = model(pixels, mask)
    finally:
        for hook in hooks:
            hook.remove()
    levels = caught["all"] if isinstance(caught["all"], list) else [caught["all"]]
    hidden, references = outputs.intermediate_hidden_states.unbind(0), outputs.init_reference_points
    logits = torch.stack([model.class_embed(x) for x in hidden], dim=1)
    boxes = torch.stack([_refined(references, model.bbox_embed(x)) for x in hidden], dim=1)
    return {
        **{f"backbone.tap{i}": _channels_last(x) for i, x in enumerate(caught["taps"].feature_maps, start=1)},
        **{f"projector.level{i}": _channels_last(x) for i, (x, _) in enumerate(levels)},
        "proposals.embeddings": caught["base"].enc_outputs_class,  # which are none of classes yet
        "proposals.logits": outputs.enc_outputs_class,
        "proposals.boxes": outputs.enc_outputs_coord_logits,
        "references": references,
        **{f"decoder.layer{i}": x for i, x in enumerate(hidden)},
        "logits": outputs.logits,
        "pred_boxes": outputs.pred_boxes,
        "aux_logits": logits[:, :-1],
        "aux_boxes": boxes[:, :-1],
    }


def stages_with_masks(model, pixels, mask=None):
    """The stages of an RF-DETR that has masks, in evaluation mode: the detector's, and the masks of its last layer.

    In training mode transformers' masks of what the encoder proposes lack a projection.
    """
    return {**stages(model.model, pixels, mask), "pred_masks": model(pixels, mask).pred_masks}


def _channels_last(x):
    return x.permute(0, 2, 3, 1)


def _refined(boxes, change):
    return torch.cat([change[..., :2] * boxes[..., 2:] + boxes[..., :2], change[..., 2:].exp() * boxes[..., 2:]], -1)


def in_training(description, batch, targets):
    """What a model of all groups is and learns in training mode.

    Args:
        description: of the model.
        batch: inputs as for Keras; in float64 all is computed in that.
        targets: as for Keras.

    Returns:
        A dict: "stages"; "losses" by name, not weighted, with `loss`, the weighted total, that of the encoder under
        `…_encoder_0`; "gradients" of the total by parameter, zero where none came; and "statistics", what batch
        normalisation has then seen, by name.
    """
    pixels, mask = inputs(batch)
    model = copy.deepcopy(build(description)).to(pixels.dtype).requires_grad_(True).train()
    labels = [{**one, "boxes": one["boxes"].to(pixels.dtype)} for one in targets_of_images(targets)]
    torch.set_default_dtype(pixels.dtype)
    try:
        with torch.no_grad():
            found = stages(copy.deepcopy(model), pixels, mask)
        outputs = model(pixels, mask, labels=labels)
    finally:
        torch.set_default_dtype(torch.float32)
    outputs.loss.backward()
    losses = {name.replace("_enc", "_encoder_0"): value for name, value in outputs.loss_dict.items()}
    return {
        "stages": found,
        "losses": {"loss": outputs.loss, **losses},
        "gradients": {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in model.named_parameters()
        },
        "statistics": {
            name: x for name, x in model.state_dict().items() if name.endswith(("running_mean", "running_var"))
        },
    }
