"""Where the decoder looks for each object (DETR, section 4.2, figure 6)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from tfdetr_keras.data.pipeline import prepare
from tfdetr_keras.inference import read_pixels, records_of
from tfdetr_keras.postprocess import post_process

COLUMNS, MOST = 4, 11  # panels a row, and objects
BRIGHT = 0.35  # how much of the image's brightness stays under the map


def draw_attention(
    model: Any,
    image: Any,
    path: str | Path,
    size: tuple[int, int] = (800, 1333),
    threshold: float = 0.5,
    layer: int = -1,
) -> None:
    """Writes a PNG with, for each object found in an image, how much its query attends to each place.

    Panels show the image with all boxes, then one object each: the darkened image, and on it the attention of a decoder
    layer, averaged over the heads, relative to its highest place. The surest come first, eleven at most.

    Args:
        model: a `DETR`.
        image: a path, an array `(height, width, 3)` uint8, or a PIL image.
        path: the PNG to write.
        size: (shortest_edge, longest_edge) that the image is resized to, pixels; as in training.
        threshold: objects with a higher score are shown.
        layer: of the decoder; the last by default.

    Raises:
        ValueError: no image, or no such layer.
    """
    layers = model.config.decoder_layers
    if not -layers <= layer < layers:
        raise ValueError(f"layer={layer}: the decoder has {layers} layers, 0 … {layers - 1}")
    pixels = read_pixels(image)
    inputs, _ = next(iter(prepare(records_of([pixels]), 1, size=size)))
    stages = model.stages({key: value.numpy() for key, value in inputs.items()}, attention=True)
    [found] = post_process(stages, [pixels.shape[:2]], threshold=-1)
    order = [row for row in np.argsort(-found["scores"], kind="stable") if found["scores"][row] > threshold][:MOST]
    weights = keras.ops.convert_to_numpy(stages[f"decoder.layer{layer % layers}.attention"])[0]
    height, width = stages["mask"].shape[1:]
    maps = np.mean(weights, axis=0).reshape(-1, int(height), int(width))

    rows = math.ceil((1 + len(order)) / COLUMNS)
    aspect = pixels.shape[0] / pixels.shape[1]
    figure = Figure(figsize=(3.2 * COLUMNS, (3.2 * aspect + 0.4) * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    axes[0].imshow(pixels)
    axes[0].set_title(f"{len(order)} objects", fontsize=10)
    for axis, row in zip(axes[1:], order, strict=False):
        label, score = int(found["labels"][row]), found["scores"][row]
        axis.imshow(_heated(pixels, maps[row]))
        axis.set_title(f"{model.id2label.get(label, label)} {score:.2f}", fontsize=10)
        for panel in (axes[0], axis):
            x1, y1, x2, y2 = found["boxes"][row]
            panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="#00e5ff", linewidth=1.5))
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=100, format="png")


def _heated(pixels: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """The image, dark, with a map of fewer cells over it in red and yellow."""
    scaled = Image.fromarray((attention / max(attention.max(), 1e-12)).astype(np.float32))
    heat = np.clip(np.asarray(scaled.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)), 0, 1)[..., None]
    colour = np.concatenate([np.minimum(1, 2 * heat), np.maximum(0, 2 * heat - 1), np.zeros_like(heat)], axis=-1)
    grey = pixels.mean(axis=-1, keepdims=True) / 255 * BRIGHT
    return np.clip(grey + colour * (1 - BRIGHT), 0, 1)
