"""D-FINE of transformers, with drawn denoising: the stages of a batch.

transformers' outputs of the decoder are those of the authors' code, but its loss pairs them wrongly; here each layer's
logits, boxes and distributions are computed once more, out of the hidden states, by the heads of the model.
"""

import sys

import torch

from reference import rt_detr


def stages(model, pixels, targets=None, draws=None):
    """The stages of a batch for Keras.

    Args:
        model: of transformers; in training mode normalisation takes the batch's statistics.
        pixels: `(batch, 3, height, width)`.
        targets: as for Keras; with them a model in training mode has denoising queries, before the others.
        draws: as for `reference.rt_detr.denoising`.

    Returns:
        Tensors by name; `corners`, `pre.logits` and `pre.boxes` are of all queries, as references and hidden states.
    """
    caught, base = {}, model.model
    module = sys.modules[type(model).__module__]

    def catch(name):
        return lambda module, inputs, output: caught.__setitem__(name, output)

    def given(module, args, kwargs):
        caught["memory"], caught["references"] = kwargs["encoder_hidden_states"], kwargs["reference_points"].sigmoid()

    hooks = []
    for name, modules, first in (
        ("backbone.stage", base.backbone.model.encoder.stages, 1),
        ("input_projection.level", base.encoder_input_proj, 0),
        ("encoder.aifi", base.encoder.aifi, 0),
    ):
        hooks += [one.register_forward_hook(catch(f"{name}{i}")) for i, one in enumerate(modules, start=first)]
    hooks.append(base.encoder.register_forward_hook(catch("encoder")))
    hooks.append(base.enc_output.register_forward_hook(catch("embeddings")))
    hooks.append(base.decoder.register_forward_pre_hook(given, with_kwargs=True))
    labels = None if targets is None else rt_detr.labels_of(targets, pixels.dtype)
    try:
        with rt_detr.denoising(model, draws):
            outputs = base(pixels, labels=labels)
    finally:
        for hook in hooks:
            hook.remove()
    queries, decoder = model.config.num_queries, base.decoder
    place = torch.topk(outputs.enc_outputs_class.amax(-1), queries, dim=1).indices[..., None]
    hidden = list(outputs.intermediate_hidden_states.unbind(1 if outputs.intermediate_hidden_states.dim() > 4 else 0))
    told = fine_grained(module, decoder, hidden, caught["references"])
    slots = hidden[0].shape[1] - queries
    logits, boxes = (told[name][:, :, slots:] for name in ("logits", "boxes"))
    maps = [name for name in caught if name.startswith(("backbone.", "input_projection.", "encoder.aifi"))]
    of_denoising = {f"denoising.{name}": told[name][:, :, :slots] for name in ("logits", "boxes")}
    return {
        **{name: rt_detr.channels_last(caught[name]) for name in maps},
        **{f"encoder.level{i}": rt_detr.channels_last(x) for i, x in enumerate(caught["encoder"].last_hidden_state)},
        "memory": caught["memory"],
        "proposals.logits": outputs.enc_outputs_class,
        "proposals.embeddings": torch.take_along_dim(caught["embeddings"], place, dim=1),
        "proposals.boxes": outputs.enc_topk_bboxes,
        **{f"decoder.layer{i}": x for i, x in enumerate(hidden)},
        **{f"decoder.layer{i}.references": x for i, x in enumerate(told["references"])},
        "corners": told["corners"],
        "pre.logits": told["first_logits"],
        "pre.boxes": told["first_boxes"],
        "logits": logits[:, -1],
        "pred_boxes": boxes[:, -1],
        "aux_logits": logits[:, :-1],
        "aux_boxes": boxes[:, :-1],
        **({} if outputs.denoising_meta_values is None else of_denoising),
    }


def fine_grained(module, decoder, hidden, references):
    """What the heads of a decoder make of each layer's hidden states, all queries `(batch, layers, queries, …)`."""
    bins = module.weighting_function(decoder.max_num_bins, decoder.up, decoder.reg_scale)
    first = (decoder.pre_bbox_head(hidden[0]) + module.inverse_sigmoid(references)).sigmoid()
    start, before, corners = first.detach(), 0, 0
    told = {"logits": [], "boxes": [], "corners": [], "references": [references]}
    for i, x in enumerate(hidden):
        corners = decoder.bbox_embed[i](x + before) + corners
        box = module.distance2bbox(start, decoder.integral(corners, bins), decoder.reg_scale)
        told["logits"].append(decoder.lqe_layers[i](decoder.class_embed[i](x), corners))
        told["boxes"].append(box)
        told["corners"].append(corners)
        told["references"].append(box.detach())
        before = x.detach()
    stacked = {name: torch.stack(told[name], dim=1) for name in ("logits", "boxes", "corners")}
    first = {"first_logits": decoder.class_embed[0](hidden[0]), "first_boxes": first}
    return {**stacked, **first, "references": told["references"][:-1]}


def stages_in_training(description, batch, targets, draws=None, arrays=None):
    """The stages of a batch in training mode, and `statistics`: moving means and variances after it, by name."""
    model, pixels = rt_detr.prepared(description, batch, arrays)
    with rt_detr.default_dtype(pixels.dtype), torch.no_grad():
        return {"stages": stages(model, pixels, targets, draws), "statistics": rt_detr.statistics(model)}
