"""Detections over their images, beside the true boxes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tfdetr_keras.detections import Detections
from tfdetr_keras.visualize.drawing import CELL, class_colour, dashed_frame, fitted, frames_with_captions, write_grid


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
        ValueError: no images, or not one entry of `detections` and `ground_truth` for each; fewer than one column.
    """
    lengths = [len(images), len(detections)] + ([] if ground_truth is None else [len(ground_truth)])
    if not lengths[0] or len(set(lengths)) > 1:
        raise ValueError(f"images, detections and ground_truth must be as many, at least one, not {lengths}")
    truths = [None] * len(images) if ground_truth is None else ground_truth
    cells = [
        _draw_image(image, found, truth, class_names, threshold)
        for image, found, truth in zip(images, detections, truths, strict=True)
    ]
    write_grid(cells, path, columns)


def image_of_detections(found: Detections, longest: int = CELL) -> Image.Image:
    """Draws all that was found in an image, as `draw_detections` does.

    Args:
        found: by `model.detect(image)`.
        longest: the picture's longer side, pixels.

    Returns:
        The picture, RGB.
    """
    rows = {"boxes": found.boxes, "labels": found.labels, "scores": found.scores}
    names = dict(zip(found.labels.tolist(), found.names, strict=True))
    return _draw_image(found.image, rows, None, names, 0.0, longest)


def _draw_image(
    pixels: np.ndarray,
    found: Mapping[str, Any],
    truth: Mapping[str, Any] | None,
    class_names: Sequence[str] | Mapping[int, str],
    threshold: float,
    longest: int = CELL,
) -> Image.Image:
    """One cell of the grid."""
    image, scale = fitted(pixels, longest)
    draw = ImageDraw.Draw(image)
    if truth is not None:
        for box in np.asarray(truth["boxes"]) * scale:
            dashed_frame(draw, box.tolist())
    scores = np.asarray(found["scores"])
    order = [row for row in np.argsort(scores) if scores[row] >= threshold]
    boxes, labels = np.asarray(found["boxes"]) * scale, np.asarray(found["labels"])
    captions = [f"{class_names[labels[row]]} {scores[row]:.2f}" for row in order]  # the surest last, on top
    frames_with_captions(draw, boxes[order], [class_colour(labels[row]) for row in order], captions, image.size)
    return image
