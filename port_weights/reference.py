"""The PyTorch model that a checkpoint belongs to: the other side of `compare`. Needs torch and transformers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from port_weights.architecture import hugging_face_config, hugging_face_scheme, model_prefix
from port_weights.port import to_torch
from port_weights.schemes import Scheme, scheme
from tfdetr_keras.models.config import ConditionalDETRConfig, DETRConfig
from tfdetr_keras.models.detr import DETR


def reference_config(config: DETRConfig) -> Any:
    """The Hugging Face configuration of the same architecture; pre-norm models are Table Transformers there."""
    return transformers.AutoConfig.for_model(**hugging_face_config(config))


def reference_model(config: DETRConfig) -> torch.nn.Module:
    """A Hugging Face detector of the same architecture, with random weights, in evaluation mode."""
    model = _detector(config)(reference_config(config))
    if config.backbone.dilation:
        _dilate_last_stage(model)
    return model.eval()


def reference_of(source: Any, model: DETR) -> tuple[torch.nn.Module, str]:
    """The PyTorch model with a checkpoint's weights.

    Args:
        source: what `model` was ported from.
        model: the Keras model.

    Returns:
        The PyTorch model and how its weights got there. A Hugging Face folder that transformers can read by itself is
        read by it; other checkpoints go through this package's tables, read backwards.
    """
    weights = Path(source) / "model.safetensors" if isinstance(source, (str, Path)) else None
    if weights is not None and weights.is_file() and not model.config.backbone.dilation:
        from safetensors import safe_open

        with safe_open(weights, framework="numpy") as file:
            readable = any("embedder.embedder.convolution" in name for name in file.keys())  # noqa: SIM118
        if readable:
            return _detector(model.config).from_pretrained(source).eval(), "read by transformers itself"
    reference = reference_model(model.config)
    load_weights(reference, to_torch(model, reference_scheme(model.config)))
    return reference, "written from the ported model through the name tables"


def _detector(config: DETRConfig) -> Any:
    return getattr(transformers, hugging_face_config(config)["architectures"][0])


def reference_scheme(config: DETRConfig) -> Scheme:
    """The names of the reference model's own `state_dict()`."""
    if config.pre_norm:  # Table Transformer kept its names in version 5
        return hugging_face_scheme(config)
    transformer, prefix = "hugging-face-in-memory", model_prefix(config)
    if isinstance(config, ConditionalDETRConfig):
        transformer = f"conditional-{transformer}"
    return scheme("hugging-face", transformer, prefix, f"{prefix}backbone.model.")


def write_random_checkpoint(folder: Path, config: DETRConfig, seed: int = 0) -> None:
    """Writes a Hugging Face folder (`config.json`, `model.safetensors`) with random weights, to practise porting on.

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
    model.save_pretrained(folder)


def write_pickle(path: Path, arrays: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> None:
    """Writes named arrays as facebookresearch/detr keeps them: `{"model": state dict, "args": argparse.Namespace}`."""
    state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    torch.save({"model": state, "args": argparse.Namespace(**arguments)}, path)


def load_weights(reference: torch.nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copies named arrays into a PyTorch model, all of them and nothing else."""
    reference.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, strict=True)


def reference_stages(reference: Any, pixel_values: np.ndarray, pixel_mask: np.ndarray) -> dict[str, np.ndarray]:
    """Runs the PyTorch model and hands out its stages under the names of `DETR.stages`.

    Args:
        reference: the model in evaluation mode.
        pixel_values: `(batch, height, width, 3)` float32.
        pixel_mask: `(batch, height, width)`, 1 = image.
    """
    features: list[torch.Tensor] = []
    trunk = next(module for module in reference.modules() if type(module).__name__ == "ResNetBackbone")
    hook = trunk.register_forward_hook(lambda module, inputs, outputs: features.extend(outputs.feature_maps))
    try:
        with torch.no_grad():
            outputs = reference(
                torch.from_numpy(pixel_values).permute(0, 3, 1, 2),
                torch.from_numpy(pixel_mask),
                output_hidden_states=True,
            )
            detector = getattr(reference, "detr", reference)
            normalize = detector.model.decoder.layernorm
            # The decoder's hidden states start with its input; the last is normalised already, the others are not.
            *earlier, last = outputs.decoder_hidden_states[1:]
            decoded = [*(normalize(state) for state in earlier), last]
    finally:
        hook.remove()
    stages = {f"backbone.stage{index + 1}": x.permute(0, 2, 3, 1) for index, x in enumerate(features)}
    encoded = [*outputs.encoder_hidden_states[1:-1], outputs.encoder_last_hidden_state]
    stages.update({f"encoder.layer{index}": x for index, x in enumerate(encoded)})
    stages.update({f"decoder.layer{index}": x for index, x in enumerate(decoded)})
    stages.update(logits=outputs.logits, pred_boxes=outputs.pred_boxes)
    if "pred_masks" in outputs:
        stages.update(pred_masks=outputs.pred_masks)
    return {name: tensor.detach().numpy() for name, tensor in stages.items()}


def _dilate_last_stage(model: Any) -> None:
    """Turns Hugging Face's ResNet, which has no dilation, into DC5."""
    trunk = next(module for module in model.modules() if type(module).__name__ == "ResNetBackbone")
    for index, block in enumerate(trunk.encoder.stages[-1].layers):
        seen = 0
        for convolution in (module for module in block.modules() if isinstance(module, torch.nn.Conv2d)):
            convolution.stride = (1, 1)
            if convolution.kernel_size == (3, 3):
                # The first block's first 3×3 reads a map that is not dilated yet.
                if index > 0 or seen > 0:
                    convolution.dilation, convolution.padding = (2, 2), (2, 2)
                seen += 1
