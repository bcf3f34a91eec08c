"""The stages of a detector under the names and in the layouts of `tfdetr_keras.models.DETR.stages`.

Feature maps are `(batch, h, w, channels)`, sequences `(batch, positions, d_model)`. They are taken out of PyTorch's own
forward pass and keep their gradients.
"""

import torch

from reference import d_fine, group_detr, rt_detr
from reference.facebook import FacebookDetr
from reference.models import build, inputs


@torch.no_grad()
def of_batch(description, batch):
    """The stages of a batch for Keras."""
    return of_model(build(description), batch)


def of_model(model, batch):
    """The stages of a batch for Keras, as tensors."""
    run = _facebook if isinstance(model, FacebookDetr) else _OWN.get(type(model).__name__, _hugging_face)
    return run(model, *inputs(batch))


def _sequence(x):
    return x.flatten(2).mT


def _channels_last(x):
    return x.permute(0, 2, 3, 1)


def _hugging_face(model, pixels, mask):
    """The stages of a Hugging Face model, which must have been made with `auxiliary_loss=False`.

    The decoder's hidden states are its input and what each layer gave; the last alone is normalised already.
    """
    detector = getattr(model, "detr", model)
    wanted = ("DetrConvEncoder", "TableTransformerConvEncoder", "PositionEmbedding", "MHAttentionMap")
    outputs, caught = _run(model, detector, wanted, pixels, mask)
    *earlier, last = outputs.decoder_hidden_states[1:]
    hidden = torch.stack([*(detector.model.decoder.layernorm(state) for state in earlier), last], dim=1)
    logits, boxes = detector.class_labels_classifier(hidden), detector.bbox_predictor(hidden)
    if hasattr(detector.model.decoder, "ref_point_head"):
        points = detector.model.decoder.ref_point_head(detector.model.query_position_embeddings.weight).sigmoid()
        boxes = boxes + torch.nn.functional.pad(torch.special.logit(points, eps=1e-5), (0, 2))
    boxes = boxes.sigmoid()
    masks = {}
    position, maps = (next(caught[name] for name in caught if name.endswith(end)) for end in ("Embedding", "Encoder"))
    if model is not detector:
        maps_of_heads = next(caught[name] for name in caught if name.endswith("MHAttentionMap"))
        masks = {"mask_attention": maps_of_heads.permute(0, 1, 3, 4, 2), "pred_masks": outputs.pred_masks}
    encoded = [*outputs.encoder_hidden_states[1:-1], outputs.encoder_last_hidden_state]
    return {
        **{f"backbone.stage{i}": _channels_last(feature) for i, (feature, _) in enumerate(maps, start=1)},
        "mask": maps[-1][1],
        "position": _sequence(position),
        "projection": _sequence(caught["Conv2d"]),
        **{f"encoder.layer{i}": x for i, x in enumerate(encoded)},
        **{f"decoder.layer{i}": x for i, x in enumerate(hidden.unbind(1))},
        "logits": outputs.logits,
        "pred_boxes": outputs.pred_boxes,
        "aux_logits": logits[:, :-1],
        "aux_boxes": boxes[:, :-1],
        **masks,
    }


def _run(model, detector, wanted, pixels, mask):
    """The outputs, and what the modules whose classes' names end in one of `wanted` gave, by these names."""
    caught = {}

    def catch(module, inputs, output):
        caught[type(module).__name__] = output

    modules = [module for module in model.modules() if type(module).__name__.endswith(wanted)]
    hooks = [module.register_forward_hook(catch) for module in [*modules, detector.model.input_projection]]
    try:
        return model(pixels, mask, output_hidden_states=True), caught
    finally:
        for hook in hooks:
            hook.remove()


def _dab(model, pixels, mask):
    """The stages of transformers' DAB-DETR, whose decoder gives what the heads see, and all layers' references."""
    wanted = ("DetrConvEncoder", "PositionEmbedding", "DabDetrDecoder")
    outputs, caught = _run(model, model, wanted, pixels, mask)
    maps, decoded = caught["DabDetrConvEncoder"], caught["DabDetrDecoder"]
    hidden = decoded.intermediate_hidden_states
    boxes = (model.bbox_predictor(hidden) + torch.special.logit(decoded.reference_points, eps=1e-5)).sigmoid()
    return {
        **{f"backbone.stage{i}": _channels_last(feature) for i, (feature, _) in enumerate(maps, start=1)},
        "mask": maps[-1][1],
        "position": _sequence(caught["DabDetrSinePositionEmbedding"]),
        "projection": _sequence(caught["Conv2d"]),
        **{f"encoder.layer{i}": x for i, x in enumerate(outputs.encoder_hidden_states[1:])},
        **{f"decoder.layer{i}": x for i, x in enumerate(hidden)},
        "logits": outputs.logits,
        "pred_boxes": outputs.pred_boxes,
        "aux_logits": model.class_embed(hidden[:-1]).transpose(0, 1),
        "aux_boxes": boxes[:-1].transpose(0, 1),
    }


def _facebook(model, pixels, mask):
    """The stages of a `FacebookDetr`."""
    taps = model(pixels, mask)
    depth = sum(name.startswith("encoder_") for name in taps)
    encoded = [*(taps[f"encoder_{i}"] for i in range(depth - 1)), taps["memory"]]
    return {
        **{f"backbone.stage{int(name[1:]) - 1}": _channels_last(x) for name, x in taps.items() if name[0] == "C"},
        "mask": taps["mask"],
        "position": _sequence(taps["pos"]),
        "projection": _sequence(taps["projected"]),
        **{f"encoder.layer{i}": x for i, x in enumerate(encoded)},
        **{name.replace("_norm_", ".layer"): x for name, x in taps.items() if name.startswith("decoder_norm_")},
        **{name: taps[name] for name in ("logits", "pred_boxes", "aux_logits", "aux_boxes")},
    }


def _deformable(model, pixels, mask):
    """The stages of a `DeformableDetrForObjectDetection`; tokens are those of all levels."""
    caught, kept = {}, {}

    def catch(name):
        return lambda module, inputs, output: caught.__setitem__(name, output)

    def keep(module, inputs, options):
        kept.update(options)

    base = model.model
    hooks = [base.encoder.layers[0].register_forward_pre_hook(keep, with_kwargs=True)]
    for name, modules in {
        "backbone.stage": base.backbone.model.encoder.stages,
        "level": base.input_proj,
        "encoder.layer": base.encoder.layers,
    }.items():
        first = name == "backbone.stage"  # which is counted from 1
        hooks += [module.register_forward_hook(catch(f"{name}{i}")) for i, module in enumerate(modules, start=first)]
    hooks.append(base.encoder.layers[0].register_forward_pre_hook(lambda _, inputs: kept.update(mask=inputs[1])))
    if pixels is not None and mask is None:
        mask = torch.ones(pixels.shape[0], *pixels.shape[2:])
    try:
        outputs = model(pixels, mask)
    finally:
        for hook in hooks:
            hook.remove()
    hidden = outputs.intermediate_hidden_states.unbind(1)
    references = [outputs.init_reference_points, *outputs.intermediate_reference_points.unbind(1)][:-1]
    logits, boxes = [], []
    for layer, (x, reference) in enumerate(zip(hidden, references, strict=True)):
        logits.append(model.class_embed[layer](x))
        offset = torch.special.logit(reference, eps=1e-5)
        boxes.append(
            (model.bbox_embed[layer](x) + torch.nn.functional.pad(offset, (0, 4 - offset.shape[-1]))).sigmoid()
        )
    proposals = {}
    if outputs.enc_outputs_class is not None:
        proposals = {
            "proposals.logits": outputs.enc_outputs_class,
            "proposals.boxes": outputs.enc_outputs_coord_logits.sigmoid(),
        }
    levels = [caught[f"level{i}"] for i in range(len(base.input_proj))]
    first = {name: output[0] if isinstance(output, tuple) else output for name, output in caught.items()}

    def image(tokens):
        return tokens * kept["mask"][..., None]

    return {
        **{name: _channels_last(x) for name, x in first.items() if name.startswith("backbone")},
        "mask": kept["mask"],
        "position": image(kept["spatial_position_embeddings"]),
        "projection": image(torch.cat([_sequence(level) for level in levels], dim=1)),
        **{name: image(x) for name, x in first.items() if name.startswith("encoder")},
        **proposals,
        **{f"decoder.layer{i}": x for i, x in enumerate(hidden)},
        **{f"decoder.layer{i}.references": x for i, x in enumerate(references)},
        "logits": outputs.logits,
        "pred_boxes": outputs.pred_boxes,
        "aux_logits": torch.stack(logits[:-1], dim=1),
        "aux_boxes": torch.stack(boxes[:-1], dim=1),
    }


def _rt_detr(model, pixels, mask):
    """The stages of an RT-DETR or RT-DETRv2 without denoising; it knows no mask."""
    return rt_detr.stages(model, pixels)


def _d_fine(model, pixels, mask):
    """The stages of a D-FINE without denoising; it knows no mask."""
    return d_fine.stages(model, pixels)


# Functions for models whose stages are others than DETR's, by the class.
_OWN = {
    "DeformableDetrForObjectDetection": _deformable,
    "DabDetrForObjectDetection": _dab,
    "RTDetrForObjectDetection": _rt_detr,
    "RTDetrV2ForObjectDetection": _rt_detr,
    "DFineForObjectDetection": _d_fine,
    "LwDetrForObjectDetection": group_detr.stages,
    "RfDetrForObjectDetection": group_detr.stages,
    "RfDetrForInstanceSegmentation": group_detr.stages_with_masks,
}
