"""Pictures of the decoder's attention for each object (DETR, section 4.2, figure 6)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image, ImageColor

from tfdetr_keras.visualize.drawing import CELL, fitted, frames_with_tags
from tfdetr_keras.visualize.lettering import font_file, shortened
from tfdetr_keras.visualize.tags import Wording
from tfdetr_keras.visualize.tiles import tile

if TYPE_CHECKING:
    from tfdetr_keras.inference.detections import Detections

COLUMNS, MOST = 4, 11  # panels a row, and objects
BRIGHT = 0.35  # how much of the image's brightness stays under the map
FRAME_COLOUR = "#00e5ff"
PANEL = 3.2  # inches, its width
TITLE = 200  # pixels of the pictures' own font, of a name above a panel
LEGEND = "where the object's query looks: yellow most, red less, grey not at all"


def draw_attention(found: Detections, path: str | Path) -> None:
    """Write a PNG that shows, for each object found in an image, how much its query attends to each place.

    The first panel shows the image with the boxes, numbered. The others show one object each: the darkened image, and
    on it the attention, relative to its highest place. The highest-scoring come first, eleven at most.

    Args:
        found: by `model.detect(image, attention=True)`.
        path: the PNG to write.

    Raises:
        ValueError: the detections are without attention.
    """
    attentions, pixels, count = _attention(found), found.image, min(len(found), MOST)
    columns = min(COLUMNS, 1 + count)
    rows = math.ceil((1 + count) / columns)
    height = np.clip(PANEL * pixels.shape[0] / pixels.shape[1], 0.25 * PANEL, 2 * PANEL)
    figure = Figure(figsize=(PANEL * columns, (height + 0.4) * rows + 0.3 * (count > 0)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    axes[0].imshow(pixels)
    axes[0].set_title(_told(len(found), count), fontsize=10)
    for place, (axis, row, attention) in enumerate(zip(axes[1:], found, attentions[:count], strict=False), start=1):
        axis.imshow(_heated(pixels, attention))
        # The width of a panel holds some 30 letters. A name is no formula, whatever it has between dollar signs.
        name = shortened(row["name"], TITLE)
        letters = FontProperties(fname=font_file(name), size=10)
        axis.set_title(f"{place}: {name} {row['score']:.2f}", fontproperties=letters, parse_math=False)
        x1, y1, x2, y2 = row["box"]
        for panel in (axes[0], axis):
            frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=FRAME_COLOUR, linewidth=1.5)
            frame.set_path_effects([withStroke(linewidth=3, foreground="black")])
            panel.add_patch(frame)
        number = axes[0].annotate(
            str(place), (x1, y1), (3, -3), textcoords="offset points", va="top", color="white", weight="bold"
        )
        number.set_path_effects([withStroke(linewidth=2.5, foreground="black")])
    for axis in axes:
        axis.set_axis_off()
    if count:
        figure.supxlabel(LEGEND if columns > 2 else LEGEND.replace(": ", ":\n", 1), fontsize=10)
    figure.savefig(path, dpi=100, format="png")


def _told(objects: int, shown: int) -> str:
    """Return a line that says how many objects there are, and how many of them are shown."""
    if not objects:
        return "nothing found"
    return f"{f'{shown} of ' if shown < objects else ''}{objects} object{'s' * (objects > 1)}"


def image_of_attention(found: Detections, row: int, longest: int = CELL) -> Image.Image:
    """Draw how much one object's query attends to each place, as a panel of `draw_attention` does.

    Args:
        found: by `model.detect(image, attention=True)`.
        row: of the object.
        longest: the image's longer side in the picture, pixels.

    Returns:
        The picture, RGB: the image, and above it the object's name where the image has no room for it.

    Raises:
        ValueError: the detections are without attention.
    """
    attention = _attention(found)[row]
    image, scale = fitted(found.image, longest)
    image = Image.fromarray((255 * _heated(np.asarray(image), attention)).round().astype(np.uint8))
    wording, colour = Wording(found.names[row], f"{found.scores[row]:.2f}"), ImageColor.getrgb(FRAME_COLOUR)
    crowding = frames_with_tags(image, found.boxes[[row]] * scale, [colour], [wording], colours_are_classes=False)
    return tile(image, [" ".join(wording)] if crowding.left_out else [])


def _attention(found: Detections) -> np.ndarray:
    """Return the maps `(n, h, w)`; raise if there are none."""
    if found.attention is None:
        raise ValueError("these detections are without attention: use model.detect(image, attention=True)")
    return found.attention


def _heated(pixels: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Return the darkened image with a coarser map over it in red and yellow."""
    scaled = Image.fromarray((attention / max(attention.max(), 1e-12)).astype(np.float32))
    heat = np.clip(np.asarray(scaled.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)), 0, 1)[..., None]
    colour = np.concatenate([np.minimum(1, 2 * heat), np.maximum(0, 2 * heat - 1), np.zeros_like(heat)], axis=-1)
    grey = pixels.mean(axis=-1, keepdims=True) / 255 * BRIGHT
    return np.clip(grey + colour * (1 - BRIGHT), 0, 1)
