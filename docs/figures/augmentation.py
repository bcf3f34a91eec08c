"""Draws the figures of the page on augmentation: what each transform makes of one image of shapes, and several sizes.

python docs/figures/augmentation.py [docs/images]
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

import tfdetr_keras as td
from tfdetr_keras.data.augmentation import strong
from tfdetr_keras.data.photometric import Distortion, distort
from tfdetr_keras.data.sizes import Resize
from tfdetr_keras.data.transforms import flip_horizontally, select
from tfdetr_keras.data.windows import resize_window
from tfdetr_keras.data.zoom_and_crop import iou_crop, random_rounds, whole, zoom_out

SIDE = 256  # pixels
SEED = 5  # of the shapes
CROP_SEED = (9, 1)
STRONG_SEEDS = ((1, 7), (4, 7), (3, 7))
SCALES = (0.75, 1.0, 1.25)  # RT-DETR's smallest, usual and largest
RESIZE = Resize(SIDE, SIDE, "stretch")
HERE = Path(__file__).parent


def steps(record):
    """Yields titles and records: of each transform alone, then of all together."""
    size = tf.constant([SIDE, SIDE])
    yield "the image", record
    distortion = Distortion(1.1, 1.4, 1.5, 0.05, True, tf.constant([1, 0, 2]))
    yield "colours", record | {"image": distort(record["image"], distortion)}
    yield "zoom-out", resize_window(record, zoom_out(size, tf.constant([0.25, 0.3, 0.8])), RESIZE)
    window, kept = iou_crop(record["boxes"], ~record["iscrowd"], size, random_rounds(tf.constant(CROP_SEED)))
    yield "IoU crop", resize_window(select(record, kept), window, RESIZE)
    yield "mirrored", flip_horizontally(resize_window(record, whole(size), RESIZE))
    for seed in STRONG_SEEDS:
        yield 'all by lot: "strong"', strong(record, tf.constant(seed), RESIZE)


def show(axes, title, image, boxes):
    """Draws an image and its boxes, `(objects, 4)` xyxy in its pixels."""
    axes.imshow(image, interpolation="nearest")
    for x1, y1, x2, y2 in np.asarray(boxes):
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, color="white", linewidth=1.5))
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)


def draw_steps(record, path):
    """Writes the figure of the transforms."""
    figure, axes = plt.subplots(2, 4, figsize=(10, 5.4), layout="constrained", facecolor="white")
    for place, (title, found) in zip(axes.flat, steps(record), strict=True):
        show(place, title, found["image"], found["boxes"])
    figure.savefig(path, dpi=90, pil_kwargs={"quality": 85})


def draw_sizes(dataset, path):
    """Writes the figure of one batch in several sizes, each a pixel of the figure by pixel."""
    batches = []
    for scale in SCALES:
        preprocessing = td.Preprocessing(size=(SIDE, SIDE), rule="stretch", mean=(0, 0, 0), std=(1, 1, 1))
        options = {"augmentation": "none", "multiscale": [scale], "preprocessing": preprocessing}
        batches.append(next(iter(td.data.prepare(dataset, 1, training=True, **options))))
    sides = [inputs["pixel_values"].shape[1] for inputs, _ in batches]
    figure, axes = plt.subplots(
        1, len(sides), figsize=(7.2, 3), width_ratios=sides, layout="constrained", facecolor="white"
    )
    for place, side, scale, (inputs, targets) in zip(axes, sides, SCALES, batches, strict=True):
        real = targets["labels"][0] >= 0
        cx, cy, width, height = tf.unstack(tf.boolean_mask(targets["boxes"][0], real) * side, axis=-1)
        boxes = tf.stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], axis=-1)
        show(place, f"× {scale}: {side} pixels", inputs["pixel_values"][0], boxes)
        place.set_anchor("S")
    figure.savefig(path, dpi=90, pil_kwargs={"quality": 85})


def main(folder):
    """Writes both figures."""
    dataset, _ = td.data.load_shapes(1, seed=SEED, size=(SIDE, SIDE))
    draw_steps(next(iter(dataset)), Path(folder) / "augmentation.jpg")
    draw_sizes(dataset, Path(folder) / "multiscale.jpg")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else HERE.parent / "images")
