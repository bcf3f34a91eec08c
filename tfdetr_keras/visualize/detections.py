"""Pictures of detections over their images, beside the true boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tfdetr_keras.visualize.drawing import (
    CELL,
    class_colour,
    dashed_frames,
    fitted,
    frames_with_tags,
    longest_side,
)
from tfdetr_keras.visualize.tags import Wording
from tfdetr_keras.visualize.tiles import dashed, key_of_classes, solid, tile, told_crowding, write_grid

if TYPE_CHECKING:
    from tfdetr_keras.inference.detections import Detections


def draw_detections(
    images: Sequence[np.ndarray],
    detections: Sequence[Mapping[str, Any]],
    class_names: Sequence[str] | Mapping[int, str],
    path: str | Path,
    ground_truth: Sequence[Mapping[str, Any]] | None = None,
    threshold: float | None = 0.5,
    columns: int = 4,
    titles: Sequence[str] | None = None,
) -> None:
    """Write a grid of images with their detections, and the true boxes where given, as a PNG.

    A detection is a solid frame in its class's colour with name and score; a true box is a dashed white frame. Above
    each image are its title and how many there are of both, and in a crowd, where tags are shortened or left out, what
    the colours mean. One image alone is drawn larger than those of a grid.

    Args:
        images: each `(height, width, 3)` uint8, RGB.
        detections: per image `{"boxes": (n, 4) xyxy pixels of the image, "labels": (n,), "scores": (n,)}`,
            as `post_process` returns them.
        class_names: name of each label, in a list or by label.
        path: the PNG to write.
        ground_truth: per image `{"boxes": (m, 4) xyxy pixels, "labels": (m,)}`.
        threshold: detections with a lower score are not drawn; None for all.
        columns: images in a row of the grid.
        titles: of each image, e.g. its file name.

    Raises:
        ValueError: no images, or not one entry of `detections`, `ground_truth` and `titles` for each; fewer than one
            column.
    """
    lengths = [len(images), len(detections)] + ([] if ground_truth is None else [len(ground_truth)])
    if not lengths[0] or len(set(lengths)) > 1:
        raise ValueError(f"images, detections and ground_truth must be as many, at least one, not {lengths}")
    truths = [None] * len(images) if ground_truth is None else ground_truth
    longest = longest_side(images)
    cells = []
    for image, found, truth, title in zip(images, detections, truths, titles_of(images, titles), strict=True):
        scores = np.asarray(found["scores"])
        said = _told(scores, threshold) + ([] if truth is None else [told_annotated(len(truth["labels"]))])
        cells.append(_draw_image(image, found, truth, class_names, threshold, longest, [", ".join(said)], title))
    legend = [] if ground_truth is None else [solid("detected, in its class's colour"), dashed("annotated")]
    write_grid(cells, path, columns, legend)


def image_of_detections(found: Detections, longest: int = CELL) -> Image.Image:
    """Draw all that was found in an image, as `draw_detections` does.

    Args:
        found: by `model.detect(image)`.
        longest: the image's longer side in the picture, pixels.

    Returns:
        The picture, RGB: the image, and above it a line where nothing was found, or where tags had no room.
    """
    rows = {"boxes": found.boxes, "labels": found.labels, "scores": found.scores}
    names = dict(zip(found.labels.tolist(), found.names, strict=True))
    lines = [] if len(found) else ["nothing found"]
    return _draw_image(found.image, rows, None, names, 0.0, longest, lines)


def titles_of(images: Sequence[np.ndarray], titles: Sequence[str] | None) -> Sequence[str | None]:
    """Return the title of each image, or None for each.

    Raises:
        ValueError: not exactly one title for each image.
    """
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"titles must be one for each of the {len(images)} images, not {len(titles)}")
    return [None] * len(images) if titles is None else titles


def told_annotated(count: int) -> str:
    """Return a line that says how many objects an image has by its annotations."""
    return f"{count} annotated" if count else "no objects annotated"


def _told(scores: np.ndarray, threshold: float | None) -> list[str]:
    """Return lines that say how many detections are above the threshold; if none, how close the best comes to it."""
    if threshold is None:
        return [f"{len(scores)} detected" if len(scores) else "nothing found"]
    if count := int((scores >= threshold).sum()):
        return [f"{count} detected"]
    return [f"nothing above {threshold:.2f}" + (f" (highest {scores.max():.2f})" if len(scores) else "")]


def _draw_image(
    pixels: np.ndarray,
    found: Mapping[str, Any],
    truth: Mapping[str, Any] | None,
    class_names: Sequence[str] | Mapping[int, str],
    threshold: float | None,
    longest: int,
    lines: Sequence[str],
    title: str | None = None,
) -> Image.Image:
    """Return one cell of the grid."""
    image, scale = fitted(pixels, longest)
    if truth is not None:
        dashed_frames(image, np.asarray(truth["boxes"]) * scale)
    scores, labels = np.asarray(found["scores"]), np.asarray(found["labels"])
    order = [
        row for row in np.argsort(scores, kind="stable") if threshold is None or scores[row] >= threshold
    ]  # the highest-scoring on top
    colours = [class_colour(labels[row]) for row in order]
    names = [class_names[int(labels[row])] for row in order]
    wordings = [Wording(name, f"{scores[row]:.2f}") for name, row in zip(names, order, strict=True)]
    crowding = frames_with_tags(image, np.asarray(found["boxes"]).reshape(-1, 4)[order] * scale, colours, wordings)
    key = key_of_classes(names, colours) if crowding.nameless else []
    return tile(image, [*lines, *told_crowding(crowding, len(order))], title, key)
