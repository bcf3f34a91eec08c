"""Training of PyTorch's detectors by PyTorch's own optimizer: gradients of a step, and whole loops of them."""

import copy
import math
import re

import torch
from torch.optim import swa_utils

from reference import losses, rt_detr, stages
from reference.models import build, configured
from reference.models import inputs as model_inputs
from reference.processors import DetrImageProcessorPil

OUTPUTS = ("logits", "pred_boxes", "aux_logits", "aux_boxes", "pred_masks")


def gradients(description, batch, targets, loss="softmax"):
    """Losses of a batch by name, and the gradient of the total in every parameter by name.

    A batch in float64 is computed in that, but for positions, heads and losses. transformers 5 freezes the whole
    backbone, by an error in a name; here all is trained. The coefficients are those of the model's configuration.
    """
    dtype = torch.from_numpy(batch["pixel_values"]).dtype
    model = copy.deepcopy(build(description)).to(dtype).requires_grad_(True)
    torch.set_default_dtype(dtype)  # of the masks made on the way
    try:
        found = stages.of_model(model, batch)
    finally:
        torch.set_default_dtype(torch.float32)
    outputs = {name: found[name].float() for name in OUTPUTS if name in found}
    told = losses.of_layers(outputs, targets, loss, getattr(model, "config", None))
    told["loss"].backward()
    # What the loss does not reach has no gradient: in transformers, the proposals of an encoder.
    return told, {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in _named(model)
    }


def _named(model):
    """The parameters with their names: of heads that the decoder holds, too, with the first that is not in it."""
    if type(model).__name__.startswith("RTDetr"):
        return list(rt_detr.named_parameters(model).items())
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    in_decoder = ("model.decoder.bbox_embed", "model.decoder.class_embed")
    named = [(min(names[one], key=lambda name: name.startswith(in_decoder)), one) for one in model.parameters()]
    return [(name, one) for name, one in named if not name.endswith("mask_token")]  # which no detector uses


def steps(description, batches, trained, rates, max_norm, loss="softmax", **options):
    """The loss before each step of AdamW, and the weights after the last by name.

    Args:
        description: of the model, which stays in evaluation mode.
        batches: (inputs, targets) as for Keras.
        trained: names of the parameters that are trained.
        rates: learning rate of the backbone and of all else.
        max_norm: to which the norm of all gradients together is clipped.
        loss: as for `losses.of_layers`.
        **options: of `torch.optim.AdamW`.
    """
    model = copy.deepcopy(build(description))
    optimizer = _adamw(model, set(trained), rates, **options)
    told = []
    for inputs, targets in batches:
        total = losses.of_layers(stages.of_model(model, inputs), targets, loss, getattr(model, "config", None))["loss"]
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_([x for group in optimizer.param_groups for x in group["params"]], max_norm)
        optimizer.step()
        told.append(total.item())
    return told, model.state_dict()


def _adamw(model, trained, rates, **options):
    """AdamW over the trained parameters, the others being frozen."""
    backbone, rest = [], []
    for name, parameter in _named(model):
        parameter.requires_grad_(name in trained)
        if name in trained:
            (backbone if "backbone" in name else rest).append(parameter)
    groups = [{"params": group, "lr": rate} for group, rate in zip((backbone, rest), rates, strict=True)]
    return torch.optim.AdamW(groups, **options)


def averaged_steps(config, arrays, batches, held_out, rates, max_norm, momentum, accumulate=1, **options):
    """A loop of AdamW over all parameters beside averages of the weights, and what both detect.

    Gradients of `accumulate` batches are averaged, then clipped; averages start with a copy after the first update and
    take a step after each batch from there on.

    Args:
        config: content of `config.json`.
        arrays: the weights at the start.
        batches: (inputs, targets) as for Keras.
        held_out: (inputs, targets) in which `detections` are made.
        rates: learning rate of the backbone and of all else.
        max_norm: to which the norm of all gradients together is clipped.
        momentum: of the averages.
        accumulate: so many batches make a step.
        **options: of `torch.optim.AdamW`.

    Returns:
        A dict: "trained", the names of all parameters; "losses" of the batches before their steps; "norms" of the
        steps' gradients before they are clipped; "weights" and "averages" by name; "detections" and
        "detections_of_averages".
    """
    model = configured(config, arrays).train()
    trained = [name for name, _ in model.named_parameters()]
    optimizer = _adamw(model, trained, rates, **options)
    averaged = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(momentum))
    told, norms = [], []
    for step, (inputs, targets) in enumerate(batches, start=1):
        loss = losses.of_layers(stages.of_model(model, inputs), targets)["loss"]
        (loss / accumulate).backward()
        told.append(loss.item())
        if step % accumulate == 0:
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm).item())
            optimizer.step()
            optimizer.zero_grad()
        if step >= accumulate:
            averaged.update_parameters(model)
    return {
        "trained": trained,
        "losses": told,
        "norms": norms,
        "weights": model.state_dict(),
        "averages": averaged.module.state_dict(),
        "detections": _detections(model, held_out),
        "detections_of_averages": _detections(averaged.module, held_out),
    }


def detections(config, arrays, batches):
    """What a model with the given weights detects, image by image, by its own post-processing.

    Args:
        config: content of `config.json`.
        arrays: its weights.
        batches: (inputs, targets) as for Keras, of which `orig_size` and `image_id` are read.
    """
    return _detections(configured(config, arrays), batches)


@torch.no_grad()
def _detections(model, batches):
    processor, found = DetrImageProcessorPil(), []
    for inputs, targets in batches:
        outputs = model.eval()(*model_inputs(inputs))
        sizes = torch.from_numpy(targets["orig_size"])
        for key, one in zip(
            targets["image_id"], processor.post_process_object_detection(outputs, 0.0, sizes), strict=True
        ):
            found.append({"image_id": key, **one})
    return found


def recipe_steps(config, arrays, batches, rate, multipliers, decay, max_norm, momentum, ramp, warmup, accumulate, eps):
    """A loop as the authors of RT-DETR and D-FINE train: groups, warm-up, trained batch norm, averages of all state.

    The backbone's batch normalisation, which transformers freezes, is trained. Scales, shifts and biases of all
    normalisations and all biases do not decay. The averages are of every floating tensor of the state, after t steps
    with the momentum d·(1 − e^(−t/τ)).

    Args:
        config: content of `config.json`.
        arrays: the weights at the start.
        batches: (inputs, targets) as for Keras.
        rate: the highest learning rate.
        multipliers: part of a parameter's name → factor on its learning rate; the first that is met counts.
        decay: weight decay.
        max_norm: to which the norm of all gradients together is clipped.
        momentum: d.
        ramp: τ, in steps.
        warmup: batches over which the learning rate rises.
        accumulate: so many batches make a step.
        eps: of AdamW.

    Returns:
        A dict: "losses" of the batches before their steps, "groups" as (rate, decay) by parameter, "weights" and
        "averages" by name.
    """
    dtype = torch.from_numpy(batches[0][0]["pixel_values"]).dtype
    model = with_trained_batch_norm(configured(config, arrays)).to(dtype).train()
    of_norms = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm)
        for own, _ in module.named_parameters()
    }
    groups = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(True)
        factor = next((factor for part, factor in multipliers.items() if part in name), 1.0)
        key = rate * factor, 0.0 if name in of_norms or name.endswith(".bias") else decay
        groups.setdefault(key, []).append((name, parameter))
    optimizer = torch.optim.AdamW(
        [
            {"params": [one for _, one in named], "lr": own_rate, "weight_decay": own_decay, "highest": own_rate}
            for (own_rate, own_decay), named in groups.items()
        ],
        eps=eps,
    )
    averages = {name: one.clone() for name, one in model.state_dict().items() if one.dtype.is_floating_point}
    told = []
    for batch, (inputs, targets) in enumerate(batches, start=1):
        torch.set_default_dtype(dtype)  # of the masks made on the way
        found = stages.of_model(model, inputs)
        torch.set_default_dtype(torch.float32)
        outputs = {name: found[name].float() for name in OUTPUTS if name in found}
        loss = losses.of_layers(outputs, targets)["loss"]
        (loss / accumulate).backward()
        told.append(loss.item())
        if batch % accumulate:
            continue
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * min(batch / warmup, 1.0)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
        share = 1 - momentum * (1 - math.exp(-(batch // accumulate) / ramp))
        with torch.no_grad():
            for name, average in averages.items():
                average.mul_(1 - share).add_(model.state_dict()[name], alpha=share)
    return {
        "losses": told,
        "groups": {name: key for key, named in groups.items() for name, _ in named},
        "weights": model.state_dict(),
        "averages": averages,
    }


def with_trained_batch_norm(model):
    """The same model with PyTorch's own batch normalisation where transformers has put frozen one."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if "FrozenBatchNorm" in type(child).__name__:
                trained = torch.nn.BatchNorm2d(len(child.weight))
                trained.load_state_dict(child.state_dict(), strict=False)
                setattr(parent, name, trained)
    return model


def denoised_steps(
    description,
    batches,
    draws,
    rate,
    backbone_factor,
    max_norm=0.1,
    arrays=None,
    moments=None,
    frozen="",
    without_decay="",
    decay=1e-4,
    betas=(0.9, 0.999),
    eps=1e-8,
):
    """Steps of AdamW as the authors train RT-DETR: their loss with denoising, batch norm in training mode, clipping.

    From weights and moments on that are given, so that one step from any state can be compared as well as a run. A
    parameter that no gradient reaches stays as it is, without decay: where points lie, of the discrete method.

    Args:
        description: of the model.
        batches: (inputs, targets) as for Keras, one pair a step; in float64 all is computed in that.
        draws: of the denoising, one dict a step, as for `rt_detr.denoising`.
        rate: learning rate.
        backbone_factor: on it, in the backbone.
        max_norm: to which the norm of all gradients together is clipped.
        arrays: the weights at the start, by names of `state_dict()`; without them the description's.
        moments: as returned; without them the optimizer is fresh.
        frozen: what matches the beginning of names that are not trained.
        without_decay: what is found in names that do not decay.
        decay: weight decay of the others.
        betas: of the optimizer.
        eps: of the optimizer.

    Returns:
        A dict: "losses", all terms by name before each step; "norms" of the gradients before they are clipped;
        "weights" by names of `state_dict()`, with what batch normalisation has seen; and "moments", "step" with
        "exp_avg" and "exp_avg_sq" by parameter.
    """
    model, _ = rt_detr.prepared(description, batches[0][0], arrays)
    trained = {
        name: parameter
        for name, parameter in rt_detr.named_parameters(model).items()
        if not (frozen and re.match(frozen, name))
    }
    model.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    groups = [
        {
            "params": [parameter],
            "lr": rate * (backbone_factor if "backbone" in name else 1.0),
            "weight_decay": 0.0 if without_decay and re.search(without_decay, name) else decay,
        }
        for name, parameter in trained.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=eps)
    step, kept = 0, ("exp_avg", "exp_avg_sq")
    if moments is not None:
        step = int(moments["step"])
        for name, parameter in trained.items():
            own = {key: torch.tensor(moments[key][name], dtype=parameter.dtype) for key in kept}
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), **own}
    told, norms = [], []
    for (inputs, targets), own_draws in zip(batches, draws, strict=True):
        pixels, _ = model_inputs(inputs)
        with rt_detr.default_dtype(pixels.dtype):
            losses_by_name = rt_detr.loss(model, pixels, targets, own_draws)
        optimizer.zero_grad()
        losses_by_name["loss"].backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), max_norm).item())
        optimizer.step()
        told.append({name: value.item() for name, value in losses_by_name.items()})
    states = {name: optimizer.state.get(parameter, {}) for name, parameter in trained.items()}
    after = {key: {n: states[n].get(key, torch.zeros_like(x)) for n, x in trained.items()} for key in kept}
    return {
        "losses": told,
        "norms": norms,
        "weights": model.state_dict(),
        "moments": {"step": step + len(batches), **after},
    }


def denoised_run(config, arrays, images, targets, order, rates, seed, draws=None, max_norm=0.1, decay=1e-4):
    """A whole training of RT-DETR by its authors' loss, as `denoised_steps` makes its steps, of all parameters.

    Args:
        config: content of `config.json`.
        arrays: the weights at the start.
        images: `(images, height, width, 3)` uint8; a pixel of 255 is 1.
        targets: `labels` `(images, rows)` and `boxes` `(images, rows, 4)`, as for Keras.
        order: `(steps, batch)` int, of which images each step's batch is made.
        rates: learning rate of each step, in the backbone as elsewhere.
        seed: of what denoising draws.
        draws: instead of that, one dict a step, as for `rt_detr.denoising`.
        max_norm: to which the norm of all gradients together is clipped.
        decay: weight decay of all parameters.

    Returns:
        A dict: "trained", the names of all parameters; "losses", the total of each batch before its step; "weights" by
        names of `state_dict()`, with what batch normalisation has seen.
    """
    model = configured(config, arrays).requires_grad_(True).train()
    trained = rt_detr.named_parameters(model)
    optimizer = torch.optim.AdamW(trained.values(), weight_decay=decay)
    told = []
    torch.manual_seed(seed)
    for step, (places, rate) in enumerate(zip(order, rates, strict=True)):
        pixels = torch.from_numpy(images[places]).permute(0, 3, 1, 2).float() / 255
        own = {name: targets[name][places] for name in ("labels", "boxes")}
        loss = rt_detr.loss(model, pixels, own, None if draws is None else draws[step])["loss"]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), max_norm)
        optimizer.step()
        told.append(loss.item())
    return {"trained": list(trained), "losses": told, "weights": model.state_dict()}
