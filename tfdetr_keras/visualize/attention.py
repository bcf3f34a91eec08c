"""Where the decoder looks for each object (DETR, section 4.2, figure 6)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageColor, ImageDraw

from tfdetr_keras.detections import Detections
from tfdetr_keras.visualize.drawing import CELL, fitted, frames_with_captions

COLUMNS, MOST = 4, 11  # panels a row, and objects
BRIGHT = 0.35  # how much of the image's brightness stays under the map
FRAME_COLOUR = "#00e5ff"


def draw_attention(found: Detections, path: str | Path) -> None:
    """Writes a PNG with, for each object found in an image, how much its query attends to each place.

    Panels show the image with all boxes, then one object each: the darkened image, and on it the attention, relative to
    its highest place. The surest come first, eleven at most.

    Args:
        found: by `model.detect(image, attention=True)`.
        path: the PNG to write.

    Raises:
        ValueError: the detections are without attention.
    """
    attentions, pixels, count = _attention(found), found.image, min(len(found), MOST)
    rows = math.ceil((1 + count) / COLUMNS)
    aspect = pixels.shape[0] / pixels.shape[1]
    figure = Figure(figsize=(3.2 * COLUMNS, (3.2 * aspect + 0.4) * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    axes[0].imshow(pixels)
    axes[0].set_title(f"{len(found)} objects", fontsize=10)
    for axis, row, attention in zip(axes[1:], found, attentions[:count], strict=False):
        axis.imshow(_heated(pixels, attention))
        axis.set_title(f"{row['name']} {row['score']:.2f}", fontsize=10)
        x1, y1, x2, y2 = row["box"]
        for panel in (axes[0], axis):
            panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=FRAME_COLOUR, linewidth=1.5))
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=100, format="png")


def image_of_attention(found: Detections, row: int, longest: int = CELL) -> Image.Image:
    """Draws how much one object's query attends to each place, as a panel of `draw_attention` does.

    Args:
        found: by `model.detect(image, attention=True)`.
        row: of the object.
        longest: the picture's longer side, pixels.

    Returns:
        The picture, RGB.

    Raises:
        ValueError: the detections are without attention.
    """
    attention = _attention(found)[row]
    image, scale = fitted(found.image, longest)
    image = Image.fromarray((255 * _heated(np.asarray(image), attention)).round().astype(np.uint8))
    colour, caption = ImageColor.getrgb(FRAME_COLOUR), f"{found.names[row]} {found.scores[row]:.2f}"
    frames_with_captions(ImageDraw.Draw(image), found.boxes[[row]] * scale, [colour], [caption], image.size)
    return image


def _attention(found: Detections) -> np.ndarray:
    """The maps `(n, h, w)`, which must be there."""
    if found.attention is None:
        raise ValueError("these detections are without attention: ask for it, model.detect(image, attention=True)")
    return found.attention


def _heated(pixels: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """The image, dark, with a map of fewer cells over it in red and yellow."""
    scaled = Image.fromarray((attention / max(attention.max(), 1e-12)).astype(np.float32))
    heat = np.clip(np.asarray(scaled.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)), 0, 1)[..., None]
    colour = np.concatenate([np.minimum(1, 2 * heat), np.maximum(0, 2 * heat - 1), np.zeros_like(heat)], axis=-1)
    grey = pixels.mean(axis=-1, keepdims=True) / 255 * BRIGHT
    return np.clip(grey + colour * (1 - BRIGHT), 0, 1)
