"""Weights, images and targets that a script and a test draw alike, each tensor from a seed of its own name.

Plain NumPy, so that a recording script can import it wherever the recorded code runs.
"""

import zlib

import numpy as np


def generator(name):
    """Return the random generator of a name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def weight(name, shape):
    """Return a value for a tensor of PyTorch's layout, float32; none of it is 0 or 1, and no point lies on a pixel."""
    rng = generator(name)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith("sampling_offsets.bias"):
        return rng.normal(0, 1, shape).astype(np.float32)
    if len(shape) == 1:
        is_scale = "norm" in name or "bn" in name or ".downsample.1." in name or name.startswith("input_proj")
        is_scale |= ".input_proj." in name or name.startswith("decoder.enc_output.1.")  # RT-DETR's, of batch and layer
        is_scale |= ".projector.stages." in name  # LW-DETR's, whose convolutions have no biases
        is_scale &= name.endswith("weight")
        is_scale |= name.endswith((".gamma_1", ".gamma_2", ".lambda1", ".lab.scale"))  # of a branch
        return (rng.normal(0, 0.1, shape) + is_scale).astype(np.float32)
    fans = np.prod(shape[1:]) + shape[0] * np.prod(shape[2:])
    scale = 0.1 if name.endswith("sampling_offsets.weight") else 1.0
    return (scale * rng.normal(0, np.sqrt(2 / fans), shape)).astype(np.float32)


def images(*sizes):
    """Return pixels `(batch, height, width, 3)`, zero in the padding, and the mask, 1 = image."""
    rng = generator("images")
    height, width = np.max(sizes, axis=0)
    pixels = np.zeros((len(sizes), height, width, 3), np.float32)
    mask = np.zeros((len(sizes), height, width), np.int64)
    for image, (h, w) in enumerate(sizes):
        pixels[image, :h, :w] = rng.standard_normal((h, w, 3))
        mask[image, :h, :w] = 1
    return pixels, mask


def targets(classes, *counts):
    """Return labels and boxes cxcywh of each image, a list of pairs."""
    rng = generator("targets")
    found = []
    for count in counts:
        low, size = rng.uniform(0.0, 0.7, (count, 2)), rng.uniform(0.05, 0.3, (count, 2))
        boxes = np.concatenate([low + size / 2, size], axis=1).astype(np.float32)
        found.append((rng.integers(0, classes, count), boxes))
    return found


def masks(targets, height, width):
    """Return the masks of each image's objects, `(objects, height, width)` bool: rough, and not as their boxes."""
    rng = generator("masks")
    found = []
    for labels, _ in targets:
        patches = rng.random((len(labels), height // 8, width // 8)) > 0.5
        found.append(patches.repeat(8, axis=1).repeat(8, axis=2))
    return found


def points(name, *shape):
    """Return places in an image, `(*shape, 2)` float32 in [0, 1)."""
    return generator(f"points of {name}").random((*shape, 2), np.float32)


def normal(name, *shape):
    """Return values, float32."""
    return generator(name).standard_normal(shape, np.float32)


def denoising(classes, images, slots):
    """Return by name what denoising queries are made of, slot by slot.

    `flip` `(images, slots)` in [0, 1), `label`, `sign` `(images, slots, 4)`, −1 or 1, and `part`, in [0, 1).
    """
    rng = generator("denoising")
    return {
        "flip": rng.random((images, slots), np.float32),
        "label": rng.integers(0, classes, (images, slots)).astype(np.int32),
        "sign": (rng.integers(0, 2, (images, slots, 4)) * 2 - 1).astype(np.float32),
        "part": rng.random((images, slots, 4), np.float32),
    }


def direction(name, shape):
    """Return a direction in which a gradient is measured, of norm 1."""
    vector = generator(f"direction of {name}").normal(size=shape)
    return vector / np.linalg.norm(vector)
