"""How much a detector has to multiply: what time is compared with."""

from __future__ import annotations

from typing import Any


def multiplications(config: Any, height: int, width: int) -> int:
    """Multiplications of convolutions and matrix products for one image, counted by PyTorch as its own model runs.

    Args:
        config: the architecture, a `DETRConfig`.
        height: of the image, pixels.
        width: of the image, pixels.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from port_weights.reference import reference_model

    model = reference_model(config)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(pixel_values=torch.zeros(1, 3, height, width))
    return counter.get_total_flops() // 2
