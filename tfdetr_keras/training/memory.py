"""Estimates of a training step's memory from shapes, before it is tried: an error later would end a run half way.

The estimate counts the numbers that the backward pass needs: the results of the backbone's convolutions from the first
trained part on, tokens and attention weights of the transformer, the mask head's maps of the objects; and gradient and
moments for each trained weight. The memory for each was measured on a CPU with TensorFlow, see "Memory of a step" in
benchmarks/RESULTS.md; it is float32, or less.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import keras

from tfdetr_keras.backbones.resnet import ResNetConfig
from tfdetr_keras.data.multiscale import MULTISCALE
from tfdetr_keras.models.deformable_detr import DeformableDETRConfig
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.detr import DETRConfig
from tfdetr_keras.models.detr_segmentation import SegmentationConfig
from tfdetr_keras.models.rt_detr_config import RTDETRConfig
from tfdetr_keras.preprocessing import Preprocessing
from tfdetr_keras.training.settings import Settings

logger = logging.getLogger(__name__)

GB = 1e9
NUMBER = 4  # bytes
OBJECTS = 10  # of an image, where nobody says how many there are
# Measured: bytes of the traced graph and its runtime; bytes of each trained weight; and how often each counted number
# is held at the highest point.
RUNTIME, LARGER_RUNTIME, STATE = 400 * 2**20, 650 * 2**20, 22
TRAINED_NORM = 1.5  # what trained batch normalisation keeps, too
OF_BACKBONE, OF_TOKENS, OF_ATTENTION, OF_MASKS, OF_MAPS = 0.7, 1.5, 2.0, 4.3, 1.0
# Numbers kept of a token in a layer, in widths of the transformer; and of one that looks at points of levels, whose
# attention keeps no weights of each token to each.
TOKEN_WIDTHS, LEVEL_WIDTHS = 14, 4


def step_memory(
    model: Detector,
    batch_size: int,
    height: int,
    width: int,
    objects: int | None = None,
    recompute: bool | None = None,
) -> int | None:
    """Estimate the bytes that a training step takes beyond the model's own.

    Args:
        model: to train.
        batch_size: images a batch, on one device.
        height: of the canvas, pixels.
        width: of the canvas, pixels.
        objects: number of objects in an image whose masks are made; `OBJECTS` by default.
        recompute: whether layers are computed again in the backward pass; by default as the model is set.

    Returns:
        The bytes; None for a network whose steps were not measured.
    """
    config = model.config
    if not isinstance(config, DETRConfig | RTDETRConfig) or not isinstance(config.backbone, ResNetConfig):
        return None
    cells = _cells(config.backbone, height, width)
    again = model.recompute if recompute is None else recompute
    kept, runtime = OF_BACKBONE * _of_backbone(config.backbone, config.frozen, height, width, again), RUNTIME
    if isinstance(config, RTDETRConfig):
        runtime = LARGER_RUNTIME
        kept *= TRAINED_NORM if config.backbone.batch_norm == "trainable" else 1.0
        kept += OF_MAPS * _of_maps(config, *cells, again) + OF_TOKENS * _of_queries(config, *cells, again)
    else:
        kept += OF_TOKENS * _of_tokens(config, *cells, again) + OF_ATTENTION * _of_attention(config, *cells, again)
    if isinstance(config, SegmentationConfig):
        kept += OF_MASKS * _of_masks(config, *cells, min(objects or OBJECTS, config.num_queries))
    trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return int(runtime + NUMBER * batch_size * kept + STATE * trained)


class Advice(NamedTuple):
    """The estimated memory of a training step.

    Attributes:
        needed: bytes.
        free: bytes that this process may still take; None if the system does not tell.
        text: a message on it.
        is_too_much: whether more is needed than is free.
    """

    needed: int
    free: int | None
    text: str
    is_too_much: bool


def advice_on_memory(model: Detector, settings: Settings, preprocessing: Preprocessing) -> Advice | None:
    """Return an estimate of a training step's memory, and what to change if it exceeds the free memory.

    Args:
        model: to train, compiled or not.
        settings: of the run.
        preprocessing: of the run.

    Returns:
        None if the model is trained on an accelerator, whose memory is not considered here, or if the steps of its
        network were not measured.
    """
    if any(not device.startswith("cpu") for device in keras.distribution.list_devices()):
        return None
    height, width = usual_canvas(preprocessing)
    if settings.multiscale:
        largest = max(MULTISCALE if settings.multiscale is True else settings.multiscale)
        height, width = round(height * largest), round(width * largest)
    if step_memory(model, settings.batch_size, height, width) is None:
        return None

    def needed(batch_size: int, share: float = 1.0, recompute: bool | None = None) -> int:
        sides = max(1, round(height * share)), max(1, round(width * share))
        return step_memory(model, batch_size, *sides, settings.max_boxes, recompute) or 0

    free, own = free_memory(), needed(settings.batch_size)
    text = (
        f"a training step takes about {_gb(own)} for {settings.batch_size} images of {height} x {width} pixels"
        f"{'' if free is None else f', and {_gb(free)} are free'}"
    )
    if free is None or own <= free:
        return Advice(own, free, text, False)
    fewer = next((size for size in _halves(settings.batch_size) if needed(size) <= free), None)
    smaller = next((share for share in (0.75, 0.5, 0.375, 0.25) if needed(settings.batch_size, share) <= free), None)
    recomputed = needed(settings.batch_size, recompute=True)
    ways = [f"recompute=True ({_gb(recomputed)})"] if recomputed <= free else []
    if fewer is not None:
        steps = settings.gradient_accumulation_steps * -(-settings.batch_size // fewer)
        ways.append(f"batch_size={fewer} with gradient_accumulation_steps={steps} ({_gb(needed(fewer))})")
    if smaller is not None:
        sides = tuple(max(1, round(side * smaller)) for side in preprocessing.size)
        ways.append(f"size={sides} ({_gb(needed(settings.batch_size, smaller))})")
    todo = " or ".join(ways) or "a smaller model, or images of a fraction of this size"
    return Advice(own, free, f"{text}: the system may end the run. Lower it by {todo}", True)


def usual_canvas(preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the height and width of the canvas of photographs in landscape format, pixels."""
    if preprocessing.pad_to is not None or preprocessing.rule not in ("huggingface", "facebook"):
        return preprocessing.largest
    height, width = (preprocessing.rounded_up(side) for side in preprocessing.size)
    return height, width


def _halves(batch_size: int) -> list[int]:
    """Return smaller batch sizes, the largest first."""
    return [batch_size >> shift for shift in range(1, batch_size.bit_length())]


def _gb(size: int) -> str:
    return f"{size / GB:.1f} GB"


def free_memory() -> int | None:
    """Return how many bytes this process may still take; None if the system does not tell.

    That is the free memory of the machine, or the limit of a container if that is less.
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
    """Return the height and width of the last feature map."""
    halvings = 1 + len(backbone.depths) - backbone.dilation
    for _ in range(halvings):
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def _of_backbone(
    backbone: ResNetConfig, frozen: Sequence[str], height: int, width: int, recompute: bool = False
) -> int:
    """Return how many numbers are kept per image: the results of the convolutions from the first trained one on.

    With `recompute`, those of one block at a time, and of all others what goes into them.
    """
    parts, largest = {"stem": 0}, 0
    height, width = -(-height // 2), -(-width // 2)
    parts["stem"] = (4 if backbone.variant == "vd" else 2) * height * width * backbone.stem_channels
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
        name = f"stage{stage + 1}"
        parts[name] = depth * channels * cells if recompute else depth * of_block + first
        largest = max(largest, 0 if name in frozen else of_block + first)
    if "backbone" in frozen:
        return 0
    names = list(parts)
    trained = [place for place, name in enumerate(names) if name not in frozen]
    kept = sum(parts[name] for name in names[trained[0] :]) if trained else 0
    return kept + (largest if recompute else 0)


def _of_tokens(config: DETRConfig, height: int, width: int, recompute: bool = False) -> int:
    """Return how many numbers are kept per image for the tokens of all layers; of one layer, with `recompute`."""
    tokens, queries, d_model = _tokens(config, height, width), config.num_predictions, config.d_model
    widths = LEVEL_WIDTHS if isinstance(config, DeformableDETRConfig) else TOKEN_WIDTHS
    encoder = tokens * (widths * d_model + 2 * config.encoder_ffn_dim)
    decoder = queries * (2 * TOKEN_WIDTHS * d_model + 2 * config.decoder_ffn_dim) + 2 * tokens * d_model
    keys = queries if isinstance(config, DeformableDETRConfig) else tokens + queries
    decoder += 3 * config.decoder_attention_heads * queries * keys
    if recompute:
        inputs = config.encoder_layers * tokens + config.decoder_layers * queries
        return inputs * d_model + max(encoder, decoder)
    return config.encoder_layers * encoder + config.decoder_layers * decoder


def _tokens(config: DETRConfig, height: int, width: int) -> int:
    """Return the positions of the transformer's image: those of the last map, or of all levels around it."""
    if not isinstance(config, DeformableDETRConfig):
        return height * width
    maps = len(config.map_channels)
    finer = sum(height * width * 4**level for level in range(maps))
    coarser = (
        math.ceil(height / 2**level) * math.ceil(width / 2**level)
        for level in range(1, 1 + config.num_feature_levels - maps)
    )
    return finer + sum(coarser)


def _of_attention(config: DETRConfig, height: int, width: int, recompute: bool = False) -> int:
    """Return how many weights the encoder's attention keeps for one image: of each token to each."""
    if isinstance(config, DeformableDETRConfig):
        return 0
    return (1 if recompute else config.encoder_layers) * config.encoder_attention_heads * (height * width) ** 2


def _of_maps(config: RTDETRConfig, height: int, width: int, recompute: bool = False) -> int:
    """Return how many numbers the hybrid encoder keeps per image: into and out of its normalisations."""
    channels, hidden = config.encoder_dim, int(config.encoder_dim * config.expansion)
    of_fusion = 2 * channels + 3 * 2 * hidden + config.fusion_blocks * 6 * hidden
    kept = largest = 0
    for level in range(config.num_feature_levels):
        cells = height * width * 4**level  # the coarsest first
        kept += cells * (2 * channels + 2 * config.d_model)  # the projections before and behind
        fusions = (level > 0) + (level < config.num_feature_levels - 1)
        kept += cells * fusions * ((2 + 2) * channels if recompute else 2 * channels + of_fusion)
        largest = max(largest, cells * of_fusion if fusions else 0)
    attended = sum(4 ** (config.num_feature_levels - 1 - level) for level in config.attended_levels)
    tokens = height * width * attended
    of_layer = tokens * (TOKEN_WIDTHS * channels + 2 * config.encoder_ffn_dim)
    of_layer += config.encoder_attention_heads * tokens * tokens
    return kept + config.encoder_layers * of_layer + (largest if recompute else 0)


def _of_queries(config: RTDETRConfig, height: int, width: int, recompute: bool = False) -> int:
    """Return how many numbers the decoder keeps per image, its denoising queries included."""
    queries = config.num_queries + 2 * config.num_denoising
    tokens = sum(height * width * 4**level for level in range(config.num_feature_levels))
    of_layer = queries * (2 * TOKEN_WIDTHS * config.d_model + 2 * config.decoder_ffn_dim)
    of_layer += 2 * tokens * config.d_model + 3 * config.decoder_attention_heads * queries * queries
    proposals = tokens * (3 * config.d_model + 2 * config.num_classes)
    if recompute:
        return proposals + config.decoder_layers * queries * config.d_model + of_layer
    return proposals + config.decoder_layers * of_layer


def _of_masks(config: SegmentationConfig, height: int, width: int, objects: int) -> int:
    """Return how many numbers are kept per image for the mask head's maps of the objects, mostly the finest ones."""
    finer = len(config.mask_head_widths) - 1
    return sum(
        3 * objects * height * width * 4 ** min(level, finer) * channels
        for level, channels in enumerate(config.mask_head_widths)
    )
