"""How much memory a training step takes, from shapes, before it is tried: later an error ends a run in its middle.

Counted are the numbers that the way back needs: of the trunk the results of its convolutions from the first trained
part on, of the transformer tokens and attention weights, of the mask head the maps of the objects; and for each trained
weight its gradient and two moments. Steps take about twice the former (RESULTS.md, "Memory of a step"), for there are
gradients of activations, workspaces, and what an allocator does not give back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tfdetr_keras.models.config import DETRConfig, ResNetConfig, SegmentationConfig
from tfdetr_keras.models.detr import DETR

logger = logging.getLogger(__name__)

NUMBER = 4  # bytes
STATE = 3  # numbers of a trained weight: gradient, two moments
OBJECTS = 10  # of an image, where nobody says how many there are
# What a step takes of what is counted: measured, see the benchmark `step_memory.py`.
OF_COUNTED = 2.0
TOKEN_WIDTHS, ATTENTION_COPIES = 14, 3  # numbers kept of a token, in widths, and of an attention weight, in a layer


class StepMemory(NamedTuple):
    """Bytes that a training step takes beyond the model's own.

    Attributes:
        activations: what is kept for the way back, and what comes with it.
        state: gradients and moments of the trained weights.
    """

    activations: int
    state: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.activations + self.state


def step_memory(model: DETR, batch_size: int, height: int, width: int, objects: int | None = None) -> StepMemory:
    """Estimate what a training step takes.

    Args:
        model: that is trained.
        batch_size: images a batch, on one device.
        height: of the canvas, pixels.
        width: of the canvas, pixels.
        objects: of an image, whose masks are made; `OBJECTS` by default.
    """
    config = model.config
    kept = _of_trunk(config.backbone, config.frozen, height, width)
    kept += _of_transformer(config, *_cells(config.backbone, height, width))
    if isinstance(config, SegmentationConfig):
        kept += _of_masks(config, height, width, min(objects or OBJECTS, config.num_queries))
    trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return StepMemory(int(OF_COUNTED * NUMBER * batch_size * kept), NUMBER * STATE * trained)


def free_memory() -> int | None:
    """Return how many bytes this process may still take, as far as the system tells; None where it does not.

    That is what the machine has left, or the limit of a container if that is less.
    """
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no container of this kind, or "max"
            continue
    return max(free, 0)


def _cells(backbone: ResNetConfig, height: int, width: int) -> tuple[int, int]:
    """Height and width of the last feature map."""
    halvings = 1 + len(backbone.depths) - backbone.dilation
    for _ in range(halvings):
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def _of_trunk(backbone: ResNetConfig, frozen: Sequence[str], height: int, width: int) -> int:
    """Numbers kept of one image: the results of the convolutions behind the first one that is trained."""
    parts = {"stem": 0}
    height, width = -(-height // 2), -(-width // 2)
    parts["stem"] = 2 * height * width * backbone.stem_channels
    height, width = -(-height // 2), -(-width // 2)
    last = len(backbone.depths) - 1
    for stage, (depth, channels) in enumerate(zip(backbone.depths, backbone.channels, strict=True)):
        before = height * width
        if stage and not (backbone.dilation and stage == last):
            height, width = -(-height // 2), -(-width // 2)
        cells, inner = height * width, channels // 4
        of_block = 2 * channels * cells if backbone.block == "basic" else (2 * inner + 2 * channels) * cells
        first = channels * cells  # of the shortcut's projection
        if backbone.block == "bottleneck":
            first += inner * (before - cells)  # its first convolution sees the finer map
        parts[f"stage{stage + 1}"] = depth * of_block + first
    if "backbone" in frozen:
        return 0
    names = list(parts)
    trained = [place for place, name in enumerate(names) if name not in frozen]
    return sum(parts[name] for name in names[trained[0] :]) if trained else 0


def _of_transformer(config: DETRConfig, height: int, width: int) -> int:
    """Numbers kept of one image: tokens of the layers, and the weights of their attentions."""
    tokens, queries, width_of_token = height * width, config.num_queries, config.d_model
    encoder = tokens * (TOKEN_WIDTHS * width_of_token + 2 * config.encoder_ffn_dim)
    encoder += ATTENTION_COPIES * config.encoder_attention_heads * tokens**2
    decoder = queries * (2 * TOKEN_WIDTHS * width_of_token + 2 * config.decoder_ffn_dim) + 2 * tokens * width_of_token
    decoder += ATTENTION_COPIES * config.decoder_attention_heads * queries * (tokens + queries)
    return config.encoder_layers * encoder + config.decoder_layers * decoder


def _of_masks(config: SegmentationConfig, height: int, width: int, objects: int) -> int:
    """Numbers kept of one image: the mask head's maps of the objects, the finest of which are the most."""
    cells, kept = _cells(config.backbone, height, width), 0
    maps = min(len(config.backbone.depths) - 1, len(config.mask_head_widths) - 1)
    for level, channels in enumerate(config.mask_head_widths):
        scale = 4 ** min(level, maps)
        kept += 3 * objects * cells[0] * cells[1] * scale * channels
    return kept
