"""RT-DETR and RT-DETRv2 of transformers in training: drawn denoising, the stages, and the authors' loss with gradients.

transformers computes the authors' losses and other gradients: it decodes a layer's box from the detached box of the
layer before, they from the box itself, for one layer back ("look forward twice"). So the boxes are decoded once more
here, out of the hidden states; the matching and each term are those of transformers.
"""

import contextlib
import copy
import sys
from unittest import mock

import numpy as np
import torch

from reference.losses import sets_of_layers, targets_of_images, varifocal
from reference.models import build, inputs


@contextlib.contextmanager
def denoising(model, draws):
    """Within, a model makes its denoising queries out of given numbers, and its mask of the default type.

    Args:
        model: of transformers.
        draws: arrays `flip` `(batch, slots)` in [0, 1), a label is replaced where it is below half the ratio; `label`
            `(batch, slots)`, by which; `sign` and `part` `(batch, slots, 4)`, -1 or 1 and in [0, 1), by which corners
            move, 1 more in negative slots. Slots are in the order of transformers, which takes the first of them. Or
            None, for PyTorch's own draws.
    """
    module = sys.modules[type(model).__module__]
    make = module.get_contrastive_denoising_training_group

    def with_draws(**options):
        wanted = []
        if options["label_noise_ratio"] > 0:
            wanted += [draws["flip"], draws["label"]]
        if options["box_noise_scale"] > 0:
            wanted += [(np.asarray(draws["sign"]) + 1) / 2, draws["part"]]
        queue = iter(wanted)

        def like(tensor, *limits, dtype=None):
            values = np.ascontiguousarray(next(queue)[:, : tensor.shape[1]])
            assert values.shape == tuple(tensor.shape), (values.shape, tuple(tensor.shape))
            return torch.from_numpy(values).to(dtype or tensor.dtype)

        with mock.patch.multiple(torch, rand_like=like, randint_like=like):
            return make(**options)

    def group(**options):
        embeddings, boxes, mask, told = (make if draws is None else with_draws)(**options)
        return embeddings, boxes, None if mask is None else mask.to(torch.get_default_dtype()), told

    with mock.patch.object(module, "get_contrastive_denoising_training_group", group):
        yield


def stages(model, pixels, targets=None, draws=None):
    """The stages of a batch for Keras, with gradients as the authors' code has them.

    Args:
        model: of transformers; in training mode normalisation takes the batch's statistics.
        pixels: `(batch, 3, height, width)`.
        targets: as for Keras; with them a model in training mode has denoising queries, before the others.
        draws: as for `denoising`.

    Returns:
        Tensors by name. References and hidden states are those of all queries; `logits`, `pred_boxes`, `aux_logits`
        and `aux_boxes` of the matching ones, `denoising.logits` and `denoising.boxes` `(batch, layers, slots, …)` of
        the others.
    """
    return _stages(model, pixels, targets, draws)[0]


def _stages(model, pixels, targets, draws):
    """The stages; and what the loss needs besides: logits and boxes of proposals, and what is known of denoising."""
    caught, base = {}, model.model

    def catch(name):
        return lambda module, inputs, output: caught.__setitem__(name, output)

    hooks = []
    for name, modules, first in (
        ("backbone.stage", base.backbone.model.encoder.stages, 1),
        ("input_projection.level", base.encoder_input_proj, 0),
        ("encoder.aifi", base.encoder.aifi, 0),
        ("memory", base.decoder_input_proj, 0),
    ):
        hooks += [module.register_forward_hook(catch(f"{name}{i}")) for i, module in enumerate(modules, start=first)]
    hooks.append(base.encoder.register_forward_hook(catch("encoder")))
    hooks.append(base.enc_output.register_forward_hook(catch("embeddings")))
    labels = None if targets is None else labels_of(targets, pixels.dtype)
    try:
        with denoising(model, draws):
            outputs = base(pixels, labels=labels)
    finally:
        for hook in hooks:
            hook.remove()
    queries = model.config.num_queries
    place = torch.topk(outputs.enc_outputs_class.amax(-1), queries, dim=1).indices[..., None]
    hidden, logits = outputs.intermediate_hidden_states, outputs.intermediate_logits
    references = [outputs.init_reference_points.sigmoid(), *outputs.intermediate_reference_points.detach().unbind(1)]
    boxes = _boxes(model, hidden.unbind(1), references[:-1])
    of_denoising = {"denoising.logits": logits[:, :, :-queries], "denoising.boxes": boxes[:, :, :-queries]}
    logits, boxes = logits[:, :, -queries:], boxes[:, :, -queries:]
    maps = [name for name in caught if name.startswith(("backbone.", "input_projection.", "encoder.aifi"))]
    memory = [caught[f"memory{i}"] for i in range(len(base.decoder_input_proj))]
    found = {
        **{name: channels_last(caught[name]) for name in maps},
        **{f"encoder.level{i}": channels_last(x) for i, x in enumerate(caught["encoder"].last_hidden_state)},
        "memory": torch.cat([x.flatten(2).mT for x in memory], dim=1),
        "proposals.logits": outputs.enc_outputs_class,
        "proposals.embeddings": torch.take_along_dim(caught["embeddings"], place, dim=1),
        "proposals.boxes": outputs.enc_topk_bboxes,
        **{f"decoder.layer{i}": x for i, x in enumerate(hidden.unbind(1))},
        **{f"decoder.layer{i}.references": x for i, x in enumerate(references[:-1])},
        "logits": logits[:, -1],
        "pred_boxes": boxes[:, -1],
        "aux_logits": logits[:, :-1],
        "aux_boxes": boxes[:, :-1],
        **({} if outputs.denoising_meta_values is None else of_denoising),
    }
    proposals = {"logits": outputs.enc_topk_logits, "pred_boxes": outputs.enc_topk_bboxes}
    return found, proposals, outputs.denoising_meta_values


def channels_last(x):
    """`(batch, channels, height, width)` in Keras' layout."""
    return x.permute(0, 2, 3, 1)


def labels_of(targets, dtype):
    """The targets of a batch as transformers takes them."""
    return [image | {"boxes": image["boxes"].to(dtype)} for image in targets_of_images(targets)]


def _boxes(model, hidden, references):
    """The boxes of each layer `(batch, layers, queries, 4)`: from the box before, which came from a detached one."""
    logit = sys.modules[type(model).__module__].inverse_sigmoid
    boxes, before = [], references[0]
    for head, x, reference in zip(model.model.decoder.bbox_embed, hidden, references, strict=True):
        offset = head(x)
        boxes.append((offset + logit(before)).sigmoid())
        before = (offset + logit(reference)).sigmoid()
    return torch.stack(boxes, dim=1)


def loss(model, pixels, targets, draws=None):
    """The authors' loss of a batch by name, as tensors, not weighted; `loss` is the weighted total.

    Of a model in training mode that has denoising queries, unless no image has an object.
    """
    found, proposals, told = _stages(model, pixels, targets, draws)
    matched = [
        ("", {"logits": found["logits"], "pred_boxes": found["pred_boxes"]}),
        *sets_of_layers("", found["aux_logits"], found["aux_boxes"]),
        ("_encoder_0", proposals),
    ]
    paired = []
    if told is not None:
        paired = sets_of_layers("_denoising", found["denoising.logits"], found["denoising.boxes"])
    return varifocal(model.config, labels_of(targets, pixels.dtype), matched, paired, told)


def named_parameters(model):
    """The parameters by the names of heads in the decoder, which the second version holds beside it, too."""
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter not in names or name.startswith("model.decoder."):
            names[parameter] = name
    return {name: parameter for parameter, name in names.items()}


@contextlib.contextmanager
def default_dtype(dtype):
    """Within, what is made on the way has the type, too."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def prepared(description, batch, arrays=None, training=True):
    """A copy of the described model that may be changed, and a batch's pixels of whose type it is.

    Args:
        description: of the model.
        batch: inputs as for Keras; in float64 all is computed in that.
        arrays: other weights, by names of `state_dict()`, all of them.
        training: whether it is in training mode.
    """
    pixels, _ = inputs(batch)
    model = copy.deepcopy(build(description)).to(pixels.dtype)
    if arrays is not None:
        model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, strict=True)
    return model.requires_grad_(True).train(training), pixels


def stages_in_training(description, batch, targets, draws=None, arrays=None):
    """The stages of a batch in training mode, and `statistics`: moving means and variances after it, by name."""
    model, pixels = prepared(description, batch, arrays)
    with default_dtype(pixels.dtype), torch.no_grad():
        return {"stages": stages(model, pixels, targets, draws), "statistics": statistics(model)}


def stages_in_evaluation(description, batch, arrays=None):
    """The stages of a batch in evaluation mode; in float64 of a batch in that."""
    model, pixels = prepared(description, batch, arrays, training=False)
    with default_dtype(pixels.dtype), torch.no_grad():
        return stages(model, pixels)


def statistics(model):
    """The moving means and variances of batch normalisation, by name."""
    return {name: x for name, x in model.state_dict().items() if name.endswith(("running_mean", "running_var"))}


def gradients(description, batch, targets, draws=None, arrays=None, training=True):
    """The authors' loss of a batch, its gradients, and what batch normalisation has then seen.

    Args:
        description: of the model.
        batch: inputs as for Keras; in float64 all is computed in that.
        targets: as for Keras.
        draws: as for `denoising`.
        arrays: other weights, by names of `state_dict()`.
        training: whether the model is in training mode, and so has denoising queries.

    Returns:
        A dict: "losses" by name, not weighted, with `loss`, the weighted total; "gradients" of that by parameter, with
        heads under their names in the decoder; "statistics" as of `stages_in_training`; and "of_transformers",
        the "loss" and the "gradients" that transformers itself gives, of which the first is the same.
    """
    model, pixels = prepared(description, batch, arrays, training)
    same = copy.deepcopy(model)
    with default_dtype(pixels.dtype):
        told = loss(model, pixels, targets, draws)
        told["loss"].backward()
        with denoising(same, draws):
            theirs = same(pixels, labels=labels_of(targets, pixels.dtype)).loss
        theirs.backward()
    found, of_transformers = _gradients(model), _gradients(same)
    return {
        "losses": told,
        "gradients": found,
        "statistics": statistics(model),
        "of_transformers": {"loss": theirs, "gradients": of_transformers},
    }


def _gradients(model):
    """The gradient in each parameter by name, zero where none came."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in named_parameters(model).items()
    }
