"""The detectors of Hugging Face's transformers, with random or given weights, and their stages: in PyTorch's process.

An architecture is told as the `config.json` of transformers has it (`port_weights.architecture.hugging_face_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from port_weights.pytorch import BATCH, STAGES, TENSORS


def reference_model(config: Mapping[str, Any]) -> torch.nn.Module:
    """Make a detector with random weights, in evaluation mode.

    Args:
        config: what `config.json` says of it; with `dilation`, its last stage is dilated (DC5), although Hugging Face's
            ResNet cannot be.
    """
    model = _detector(config)(transformers.AutoConfig.for_model(**config))
    if config.get("dilation"):
        _dilate_last_stage(model)
    return model.eval()


def load_weights(reference: torch.nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy named arrays into a PyTorch model, all of them and nothing else."""
    reference.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, strict=True)


def write_stages(folder: Path, config: Mapping[str, Any], checkpoint: str | None) -> list[str]:
    """Run a model on `BATCH` in the folder, write its stages to `STAGES` and return their names in order.

    Args:
        folder: where the files are.
        config: as for `reference_model`.
        checkpoint: the folder that transformers reads the weights from; those of `TENSORS` where there is none.
    """
    if checkpoint is None:
        model = reference_model(config)
        load_weights(model, load_file(folder / TENSORS))
    else:
        model = _detector(config).from_pretrained(checkpoint).eval()
    batch = load_file(folder / BATCH)
    stages = reference_stages(model, batch["pixel_values"], batch["pixel_mask"])
    save_file({name: np.ascontiguousarray(array) for name, array in stages.items()}, folder / STAGES)
    return list(stages)


def reference_stages(reference: Any, pixel_values: np.ndarray, pixel_mask: np.ndarray) -> dict[str, np.ndarray]:
    """Run a model and hand out its stages under the names of `DETR.stages`.

    Args:
        reference: the model in evaluation mode.
        pixel_values: `(batch, height, width, 3)` float32.
        pixel_mask: `(batch, height, width)`, 1 = image.
    """
    if hasattr(reference, "model") and hasattr(reference.model, "enc_score_head"):
        return _stages_in_real_time(reference, pixel_values)
    if type(reference).__name__.startswith(("LwDetr", "RfDetr")):
        return _stages_of_groups(reference, pixel_values, pixel_mask)
    features: list[torch.Tensor] = []
    backbone = next(module for module in reference.modules() if type(module).__name__ == "ResNetBackbone")
    hooks = [backbone.register_forward_hook(lambda module, inputs, outputs: features.extend(outputs.feature_maps))]
    detector = getattr(reference, "detr", reference)
    has_levels, of_tokens = hasattr(detector.model, "level_embed"), []
    if has_levels:  # the padding of all levels, which its encoder alone is told of
        first = detector.model.encoder.layers[0]
        hooks.append(first.register_forward_pre_hook(lambda module, inputs: of_tokens.append(inputs[1])))
    try:
        with torch.no_grad():
            outputs = reference(
                torch.from_numpy(pixel_values).permute(0, 3, 1, 2),
                torch.from_numpy(pixel_mask),
                output_hidden_states=True,
            )
            encoded = [*outputs.encoder_hidden_states[1:-1], outputs.encoder_last_hidden_state]
            if has_levels:
                encoded = [x * of_tokens[0][..., None] for x in encoded]
                decoded = outputs.intermediate_hidden_states.unbind(1)
            else:
                normalize = detector.model.decoder.layernorm
                # The decoder's hidden states start with its input; the last is normalised already, others are not.
                *earlier, last = outputs.decoder_hidden_states[1:]
                decoded = [*(normalize(state) for state in earlier), last]
    finally:
        for hook in hooks:
            hook.remove()
    # Where there are levels, the last maps alone are given.
    start = len(backbone.encoder.stages) - len(features) + 1
    stages = {f"backbone.stage{index}": x.permute(0, 2, 3, 1) for index, x in enumerate(features, start=start)}
    stages.update({f"encoder.layer{index}": x for index, x in enumerate(encoded)})
    stages.update({f"decoder.layer{index}": x for index, x in enumerate(decoded)})
    stages.update(logits=outputs.logits, pred_boxes=outputs.pred_boxes)
    if "pred_masks" in outputs:
        stages.update(pred_masks=outputs.pred_masks)
    return {name: tensor.detach().numpy() for name, tensor in stages.items()}


def _stages_in_real_time(reference: Any, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
    """Hand out the stages of an RT-DETR or D-FINE, which choose their queries and know no padding."""
    maps: dict[str, torch.Tensor] = {}
    base = reference.model

    def keep(name: str) -> Any:
        return lambda module, inputs, output: maps.update({name: output.permute(0, 2, 3, 1)})

    backbone = base.backbone.model.encoder.stages
    parts = [(f"backbone.stage{number}", stage) for number, stage in enumerate(backbone, start=1)]
    parts += [(f"input_projection.level{level}", part) for level, part in enumerate(base.encoder_input_proj)]
    hooks = [part.register_forward_hook(keep(name)) for name, part in parts]
    try:
        with torch.no_grad():
            outputs = reference(torch.from_numpy(pixel_values).permute(0, 3, 1, 2))
    finally:
        for hook in hooks:
            hook.remove()
    # D-FINE's layers come before the images.
    axis_of_layers = 0 if type(reference).__name__.startswith("DFine") else 1
    decoded = outputs.intermediate_hidden_states.unbind(axis_of_layers)
    stages = {
        **maps,
        "proposals.logits": outputs.enc_outputs_class,
        **{f"decoder.layer{index}": x for index, x in enumerate(decoded)},
        "logits": outputs.logits,
        "pred_boxes": outputs.pred_boxes,
    }
    return {name: tensor.detach().numpy() for name, tensor in stages.items()}


def _stages_of_groups(reference: Any, pixel_values: np.ndarray, pixel_mask: np.ndarray) -> dict[str, np.ndarray]:
    """Hand out the stages of an LW-DETR or RF-DETR, with masks or without, which chooses its queries by groups."""
    caught: dict[str, Any] = {}
    base = next(module for module in reference.modules() if hasattr(module, "enc_out_class_embed"))
    parts = {"taps": base.backbone.backbone, "levels": base.backbone, "base": base}
    hooks = [
        part.register_forward_hook(lambda module, inputs, output, name=name: caught.update({name: output}))
        for name, part in parts.items()
    ]
    try:
        with torch.no_grad():
            outputs = reference(torch.from_numpy(pixel_values).permute(0, 3, 1, 2), torch.from_numpy(pixel_mask))
    finally:
        for hook in hooks:
            hook.remove()
    levels = caught["levels"] if isinstance(caught["levels"], list) else [caught["levels"]]
    decoded = caught["base"].intermediate_hidden_states.unbind(0)
    stages = {
        **{f"backbone.tap{i}": x.permute(0, 2, 3, 1) for i, x in enumerate(caught["taps"].feature_maps, start=1)},
        **{f"projector.level{i}": x.permute(0, 2, 3, 1) for i, (x, _) in enumerate(levels)},
        "references": caught["base"].init_reference_points,
        **{f"decoder.layer{i}": x for i, x in enumerate(decoded)},
        "logits": outputs.logits,
        "pred_boxes": outputs.pred_boxes,
    }
    if "pred_masks" in outputs:
        stages.update(pred_masks=outputs.pred_masks)
    return {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in stages.items()}


def write_random_model(folder: Path, target: str, config: Mapping[str, Any], seed: int) -> None:
    """Write `config.json` and `model.safetensors` of a model with random weights into the folder `target`.

    Batch-norm statistics are random, too: with their defaults, mean 0 and variance 1, a wrong port would go unnoticed.
    """
    torch.manual_seed(seed)
    model: Any = reference_model(config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_var", "normalization.weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "normalization.bias")):
                tensor.normal_(std=0.1)
            elif tensor.ndim > 1:
                torch.nn.init.xavier_uniform_(tensor)
    model.save_pretrained(target)


def _detector(config: Mapping[str, Any]) -> Any:
    return getattr(transformers, config["architectures"][0])


def _dilate_last_stage(model: Any) -> None:
    """Turn Hugging Face's ResNet, which has no dilation, into DC5."""
    backbone = next(module for module in model.modules() if type(module).__name__ == "ResNetBackbone")
    for index, block in enumerate(backbone.encoder.stages[-1].layers):
        seen = 0
        for convolution in (module for module in block.modules() if isinstance(module, torch.nn.Conv2d)):
            convolution.stride = (1, 1)
            if convolution.kernel_size == (3, 3):
                # The first block's first 3×3 reads a map that is not dilated yet.
                if index > 0 or seen > 0:
                    convolution.dilation, convolution.padding = (2, 2), (2, 2)
                seen += 1
