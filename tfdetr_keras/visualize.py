"""Pictures to look at: detections over their images, and the curves of a training run."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

CELL = 480  # pixels, the longer side of an image in the grid: captions have one size whatever the image's
GAP = 8
FONT_SIZE = 15
TRUE_COLOUR = (255, 255, 255)
DASH = 6


def draw_detections(
    images: Sequence[np.ndarray],
    detections: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    path: str | Path,
    ground_truth: Sequence[Mapping[str, Any]] | None = None,
    threshold: float = 0.5,
    columns: int = 4,
) -> None:
    """Writes a grid of images with their detections, and the true boxes where given, as a PNG.

    A detection is a solid frame in its class's colour with name and score; a true box is a dashed white frame.

    Args:
        images: each `(height, width, 3)` uint8, RGB.
        detections: per image `{"boxes": (n, 4) xyxy pixels of the image, "labels": (n,), "scores": (n,)}`,
            as `post_process` returns them.
        class_names: name of each label.
        path: the PNG to write.
        ground_truth: per image `{"boxes": (m, 4) xyxy pixels, "labels": (m,)}`.
        threshold: detections with a lower score are not drawn.
        columns: images in a row of the grid.

    Raises:
        ValueError: no images, or not one entry of `detections` and `ground_truth` for each.
    """
    lengths = [len(images), len(detections)] + ([] if ground_truth is None else [len(ground_truth)])
    if not lengths[0] or len(set(lengths)) > 1:
        raise ValueError(f"images, detections and ground_truth must be as many, at least one, not {lengths}")
    truths = [None] * len(images) if ground_truth is None else ground_truth
    cells = [
        _draw_image(image, found, truth, class_names, threshold)
        for image, found, truth in zip(images, detections, truths, strict=True)
    ]
    columns = min(columns, len(cells))
    width = max(cell.width for cell in cells) + GAP
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + GAP for row in rows]
    grid = Image.new("RGB", (columns * width + GAP, sum(heights) + GAP), "white")
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            grid.paste(cell, (GAP + j * width, GAP + sum(heights[:i])))
    grid.save(path, format="PNG")


def plot_curves(history: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Writes the curves of a training run as a PNG, one panel a quantity, its validation beside it.

    Args:
        history: name -> value per epoch, as `keras.callbacks.History.history`; "val_x" is drawn with "x".
        path: the PNG to write.

    Raises:
        ValueError: the history is empty.
    """
    panels = list(dict.fromkeys(name.removeprefix("val_") for name in history))
    if not panels:
        raise ValueError("the history is empty: there is no curve to draw")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        for name, label in ((panel, "training"), (f"val_{panel}", "validation")):
            if name in history:
                epochs = range(1, len(history[name]) + 1)
                axis.plot(epochs, history[name], label=label, marker="." if len(epochs) < 20 else None)
        axis.set(title=panel, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=120, format="png")


def _draw_image(
    pixels: np.ndarray,
    found: Mapping[str, Any],
    truth: Mapping[str, Any] | None,
    class_names: Sequence[str],
    threshold: float,
) -> Image.Image:
    """One cell of the grid."""
    image = Image.fromarray(pixels)
    scale = CELL / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    draw = ImageDraw.Draw(image)
    if truth is not None:
        for box in np.asarray(truth["boxes"]) * scale:
            _dashed_frame(draw, box.tolist())
    scores = np.asarray(found["scores"])
    order = [row for row in np.argsort(scores) if scores[row] >= threshold]
    boxes, labels = np.asarray(found["boxes"]) * scale, np.asarray(found["labels"])
    # All frames first, then the captions, the surest last: none is hidden behind a frame.
    for row in order:
        draw.rectangle(_inside(boxes[row], image.size), outline=_class_colour(int(labels[row])), width=3)
    for row in order:
        caption = f"{class_names[labels[row]]} {scores[row]:.2f}"
        _caption(draw, _inside(boxes[row], image.size), caption, _class_colour(int(labels[row])), image.size)
    return image


def _inside(box: np.ndarray, size: tuple[int, int]) -> list[float]:
    """The box, clipped to the image and with its corners in order, so that its frame can be drawn."""
    x1, y1, x2, y2 = np.clip(box, 0, [size[0] - 1, size[1] - 1] * 2).tolist()
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def _class_colour(label: int) -> tuple[int, ...]:
    """A vivid colour for each label; the golden ratio keeps neighbours apart."""
    hue = label * 0.618034 % 1
    return tuple(round(255 * level) for level in colorsys.hsv_to_rgb(hue, 0.85, 0.95))


def _dashed_frame(draw: ImageDraw.ImageDraw, box: list[float]) -> None:
    """White dashes on a thin dark line: seen on any background."""
    x1, y1, x2, y2 = box
    draw.rectangle(box, outline=(0, 0, 0), width=1)
    for y in (y1, y2):
        for x in np.arange(x1, x2, 2 * DASH):
            draw.line((x, y, min(x + DASH, x2), y), fill=TRUE_COLOUR, width=2)
    for x in (x1, x2):
        for y in np.arange(y1, y2, 2 * DASH):
            draw.line((x, y, x, min(y + DASH, y2)), fill=TRUE_COLOUR, width=2)


def _caption(
    draw: ImageDraw.ImageDraw, box: list[float], text: str, colour: tuple[int, ...], size: tuple[int, int]
) -> None:
    """Text on a plate of the box's colour, above the box where there is room, and always inside the image."""
    font = ImageFont.load_default(FONT_SIZE)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = max(0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.text((x + 3 - left, y + 3 - top), text, fill="black" if brightness > 128 else "white", font=font)
