"""Pictures of the batches that `prepare` makes for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tfdetr_keras.losses.targets import PADDING_LABEL, dense_targets, validate_batch
from tfdetr_keras.preprocessing import Preprocessing
from tfdetr_keras.visualize.drawing import Crowding, cell_scale, class_colour, frames_with_tags, tint
from tfdetr_keras.visualize.tags import Wording
from tfdetr_keras.visualize.tiles import SAMPLE, Entry, key_of_classes, solid, tile, told_crowding, write_grid

# The padding's hatching: no photograph has it.
HATCH = 8  # pixels, of one diagonal stripe
HATCH_LEVELS = (112, 144)


def show_batch(
    batch: Sequence[Any],
    class_names: Sequence[str],
    path: str | Path,
    columns: int = 4,
    box_reference: str = "image",
    titles: Mapping[int, str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Write the images of a batch as the model will see them, with their boxes and masks, as a PNG.

    Each image is shown on its canvas, with the padding hatched; above it are its title or id, the number of its
    objects, and its size before and after the augmentation and the resize (height × width). Masks, where the targets
    have them, are translucent, in the colour of their box.

    Args:
        batch: (inputs, targets) as `td.data.prepare` yields them: `{"pixel_values": (batch, height, width, 3) float,
            "pixel_mask": (batch, height, width) int, 1 = image}` and `{"labels": (batch, M) int, -1 = padding,
            "boxes": (batch, M, 4) cxcywh in [0, 1]}`, optionally with `"masks": (batch, M, height, width) bool`,
            `"image_id"` and `"orig_size"`; tensors or arrays.
        class_names: name of each label.
        path: the PNG to write.
        columns: images in a row of the grid.
        box_reference: "image" or "padded", what the boxes are relative to; the same as for `prepare`.
        titles: of images, by their ids, e.g. their file names.
        preprocessing: by which the batch was made; by default that of published DETRs.

    Raises:
        ValueError: anything but such a batch, shapes that do not fit, a mask that is not the top left corner of
            the canvas, pixels that are not finite, or targets that no model could be trained on; fewer than one column.
    """
    if box_reference not in ("image", "padded"):
        raise ValueError(f'box_reference must be "image" or "padded", not {box_reference!r}')
    preprocessing = Preprocessing.of(preprocessing)
    pixels, mask, targets = _arrays(batch)
    validate_batch(targets, len(class_names))
    if len(targets["labels"]) != len(pixels):
        raise ValueError(f"the batch has {len(pixels)} images but targets of {len(targets['labels'])}")
    canvases = (*targets["labels"].shape, *mask.shape[1:])
    if "masks" in targets and targets["masks"].shape != canvases:
        raise ValueError(
            f"the targets' masks must be (batch, boxes, height, width) = {canvases}, as labels and pixel_mask say, "
            f"not {targets['masks'].shape}"
        )
    ids = targets.get("image_id", np.arange(len(pixels)))
    sizes = [_image_size(one, image_id) for one, image_id in zip(mask, ids, strict=True)]
    cells = []
    for place, (height, width) in enumerate(sizes):
        real = targets["labels"][place] != PADDING_LABEL
        labels, boxes = targets["labels"][place][real], targets["boxes"][place][real].astype(np.float64)
        across = (width, height) if box_reference == "image" else mask.shape[:0:-1]
        corners = _corners(boxes) * (across * 2)
        masks = targets["masks"][place][real] if "masks" in targets else ()
        levels = _levels(pixels[place], ids[place], preprocessing)
        image, crowding = _draw(levels, mask[place], corners, masks, labels, class_names)
        objects = f"{len(labels) or 'no'} object{'' if len(labels) == 1 else 's'}"
        before = (
            f"{targets['orig_size'][place][0]} × {targets['orig_size'][place][1]} → " if "orig_size" in targets else ""
        )
        key = (
            key_of_classes([class_names[label] for label in labels], [class_colour(label) for label in labels])
            if crowding.nameless
            else ()
        )
        lines = [objects, f"{before}{height} × {width}", *told_crowding(crowding, len(labels))]
        name = (titles or {}).get(int(ids[place]), f"image {ids[place]}")
        cells.append(tile(image, lines, name, key))
    legend: list[Entry] = (
        [solid("annotated, in its class's colour")] if (targets["labels"] != PADDING_LABEL).any() else []
    )
    if not mask.all():
        legend.append((_paint_hatching, SAMPLE, "padding"))
    write_grid(cells, path, columns, legend)


def _arrays(batch: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return the pixels, the mask as bool, and the targets of a batch, on the host."""
    wanted = 'a batch is (inputs, targets) as td.data.prepare yields it, inputs {"pixel_values", "pixel_mask"}'
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise ValueError(f"{wanted}; this is {type(batch).__name__}: take one, e.g. next(iter(dataset))")
    inputs, targets = batch[:2]
    for part, keys in ((inputs, {"pixel_values", "pixel_mask"}), (targets, {"labels", "boxes"})):
        if not isinstance(part, Mapping) or not keys <= set(part):
            found = sorted(part) if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{wanted}; instead of {sorted(keys)} it has {found}")
    pixels, mask = np.asarray(inputs["pixel_values"]), np.asarray(inputs["pixel_mask"])
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.shape[:-1] != mask.shape or not len(pixels):
        raise ValueError(
            f"pixel_values must be (batch, height, width, 3) and pixel_mask (batch, height, width), not {pixels.shape} "
            f"and {mask.shape}"
        )
    known = {"labels", "boxes", "masks", "image_id", "orig_size"}
    return pixels, mask != 0, {key: np.asarray(value) for key, value in dense_targets(targets).items() if key in known}


def _image_size(mask: np.ndarray, image_id: Any) -> tuple[int, int]:
    """Return the height and width of the image on its canvas."""
    height, width = int(mask[:, 0].sum()), int(mask[0].sum())
    if not height or not mask[:height, :width].all() or mask.sum() != height * width:
        raise ValueError(
            f"image {image_id}: pixel_mask must be 1 in a rectangle at the top left, the image, and 0 in the padding"
        )
    return height, width


def _levels(pixels: np.ndarray, image_id: Any, preprocessing: Preprocessing) -> np.ndarray:
    """Return the levels 0 .. 255 of normalised pixels `(height, width, 3)`."""
    if not np.isfinite(pixels).all():
        raise ValueError(f"image {image_id}: pixel_values has values that are not finite")
    levels = (pixels.astype(np.float64) * preprocessing.std + preprocessing.mean) / preprocessing.rescale
    return levels.round().clip(0, 255).astype(np.uint8)


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def _draw(
    levels: np.ndarray,
    mask: np.ndarray,
    boxes: np.ndarray,
    masks: Sequence[np.ndarray],
    labels: np.ndarray,
    class_names: Sequence[str],
) -> tuple[Image.Image, Crowding]:
    """Draw the canvas with its padding hatched, boxes `(n, 4)` xyxy in pixels of it, and the objects' masks."""
    scale = cell_scale((mask.shape[1], mask.shape[0]))
    size = (max(round(mask.shape[1] * scale), 1), max(round(mask.shape[0] * scale), 1))
    shrunk = np.array(Image.fromarray(levels).resize(size))
    padding = ~np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    shrunk[padding] = _hatching(padding.shape)[padding]
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")  # small objects on large ones
    wordings = [Wording(class_names[label]) for label in labels[order]]
    colours = [class_colour(label) for label in labels[order]]
    if len(masks):
        shrunk = _tinted(shrunk, [masks[row] for row in order], colours)
    image = Image.fromarray(shrunk)
    return image, frames_with_tags(image, boxes[order] * scale, colours, wordings)


def _tinted(pixels: np.ndarray, masks: Sequence[np.ndarray], colours: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Return the picture `(height, width, 3)` uint8 under masks of the canvas, which may be larger or smaller."""
    tinted = pixels.astype(np.float32)
    for mask, colour in zip(masks, colours, strict=True):
        # Each pixel's share, so that nothing thin or small gets lost between the pixels of a picture that was shrunk.
        levels = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
        share = levels.resize(pixels.shape[1::-1], Image.Resampling.BOX)
        tint(tinted, np.asarray(share, np.float32) / 255, colour)
    return tinted.round().astype(np.uint8)


def _hatching(shape: tuple[int, ...]) -> np.ndarray:
    """Return diagonal stripes `(height, width, 3)`."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    stripes = np.array(HATCH_LEVELS, np.uint8)[(rows + columns) // HATCH % 2]
    return np.repeat(stripes[..., None], 3, axis=-1)


def _paint_hatching(image: Image.Image, box: Sequence[int]) -> None:
    x1, y1, x2, y2 = box
    image.paste(Image.fromarray(_hatching((y2 - y1 + 1, x2 - x1 + 1))), (x1, y1))
