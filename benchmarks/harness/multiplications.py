"""What a detector has to compute and to keep, counted in PyTorch's process: what time and memory are compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Work(NamedTuple):
    """Of one image."""

    inference: int  # multiplications of convolutions and matrix products
    training: int  # the same with the way back to all that is trained
    kept: int  # bytes of the activations, float32, that the way back needs
    parameters: int
    trained: int  # parameters


def multiplications(config: Any, height: int, width: int) -> int:
    """Multiplications of convolutions and matrix products for one image.

    Args:
        config: the architecture, a `DETRConfig`.
        height: of the image, pixels.
        width: of the image, pixels.
    """
    return _in_pytorch("count_inference", config, height, width)


def work(config: Any, height: int, width: int) -> Work:
    """Counts what PyTorch's own model does; stem, first stage and batch normalisation are frozen, RT-DETR's are not."""
    return Work(*_in_pytorch("count_work", config, height, width))


def _in_pytorch(function: str, config: Any, height: int, width: int) -> Any:
    from port_weights.architecture import hugging_face_config
    from port_weights.pytorch.process import run

    described = hugging_face_config(config)
    with tempfile.TemporaryDirectory() as folder:
        task = f"harness.multiplications:{function}"
        return run(task, Path(folder), config=described, height=height, width=width)


def count_inference(folder: Path, config: Mapping[str, Any], height: int, width: int) -> int:
    """Counts for `multiplications`, in PyTorch's process."""
    import torch

    with torch.inference_mode(), _counter() as counter:
        _model(config)(pixel_values=torch.zeros(1, 3, height, width))
    return counter.get_total_flops() // 2


def count_work(folder: Path, config: Mapping[str, Any], height: int, width: int) -> tuple[int, ...]:
    """Counts for `work`, in PyTorch's process."""
    import torch

    model = _model(config)
    for path, parameter in model.named_parameters() if config["model_type"] != "rt_detr" else ():
        frozen = "backbone" in path and ("embedder" in path or "stages.0." in path or "normalization" in path)
        parameter.requires_grad_(not frozen)
    weights = {id(parameter) for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        if id(tensor) not in weights and tensor.is_floating_point():
            kept[id(tensor.untyped_storage())] = tensor  # so that no other gets its number
        return tensor

    with _counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = model(pixel_values=torch.zeros(1, 3, height, width))
        inference = counter.get_total_flops() // 2
        (outputs.logits.sum() + outputs.pred_boxes.sum()).backward()
        training = counter.get_total_flops() // 2
    return (
        inference,
        training,
        sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    )


def _model(config: Mapping[str, Any]) -> Any:
    from port_weights.pytorch.model import reference_model

    model: Any = reference_model(config)
    model.set_attn_implementation("eager")  # whose products are counted wherever they run
    return model


def _counter() -> Any:
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)
