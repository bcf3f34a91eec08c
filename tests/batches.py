"""Inputs and targets for tests: random images that are padded, and random objects in them."""

import numpy as np


def padded_batch(*sizes, seed=0):
    """Random images of the given (height, width), padded with zeros at the bottom and on the right."""
    generator = np.random.default_rng(seed)
    height, width = np.max(sizes, axis=0)
    pixels = np.zeros((len(sizes), height, width, 3), np.float32)
    mask = np.zeros((len(sizes), height, width), np.int64)
    for image, (h, w) in enumerate(sizes):
        pixels[image, :h, :w] = generator.standard_normal((h, w, 3))
        mask[image, :h, :w] = 1
    return {"pixel_values": pixels, "pixel_mask": mask}


def random_targets(counts, num_labels, rows, seed=0, canvas=None):
    """Targets with `counts[i]` objects in image i, padded to `rows`; widths and heights are at least 0.02.

    With `canvas`, height and width in pixels, also masks: random ones, not inside their boxes.
    """
    generator = np.random.default_rng(seed)
    labels = np.full((len(counts), rows), -1, np.int32)
    boxes = np.zeros((*labels.shape, 4), np.float32)
    for image, count in enumerate(counts):
        low = generator.uniform(0.0, 0.7, (count, 2))
        size = generator.uniform(0.02, 0.3, (count, 2))
        labels[image, :count] = generator.integers(0, num_labels, count)
        boxes[image, :count] = np.concatenate([low + size / 2, size], axis=1)
    targets = {"labels": labels, "boxes": boxes}
    if canvas is not None:
        targets["masks"] = (generator.random((*labels.shape, *canvas)) < 0.3) & (labels >= 0)[..., None, None]
    return targets


def random_draws(images, slots, num_labels, seed=0):
    """What denoising queries are made of, slot by slot, the same for Keras and for PyTorch.

    Returns:
        Arrays by name: `flip` `(images, slots)` uniform in [0, 1), which decides whether a label is replaced; `label`,
        by which class; `sign` `(images, slots, 4)`, -1 or 1; and `part`, uniform in [0, 1): by how much of half the
        box's sides its corners move, 1 more in negative slots.
    """
    generator = np.random.default_rng(seed)
    return {
        "flip": generator.random((images, slots), np.float32),
        "label": generator.integers(0, num_labels, (images, slots)).astype(np.int32),
        "sign": generator.integers(0, 2, (images, slots, 4)).astype(np.float32) * 2 - 1,
        "part": generator.random((images, slots, 4), np.float32),
    }
