"""A detection set that needs no download: coloured shapes on textured backgrounds, drawn on the fly.

Image `index` of a set is a function of `(seed, index)` alone, so any order, any parallelism and any length
of the set give the same image. Shapes are painted without anti-aliasing in one flat colour that no background
contains, and each box fits tightly around the pixels its shape covers (before others are painted over it).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.record import MASKS_SPEC, READABLE, RECORD_SPEC, Reader, Record, with_static_shapes
from tfdetr_keras.data.validation import Validation

MAX_OBJECTS = 8
SMALLEST, LARGEST = 1 / 5, 1 / 2  # of the image's short side, the diameter of the circle around a shape
MIN_VISIBLE = 0.6  # of an object's pixels, after all others are painted
PLACEMENT_ATTEMPTS = 5
DARKEST, LIGHTEST = 48, 208  # of a background's base colour
TEXTURE, NOISE = 32, 8  # levels that a background may stray from its base colour
CONTRAST = 90  # levels between a shape and its background's base colour, in one channel; > TEXTURE + NOISE


def _disc(radius: float, hole: float, offset: float, angle: float) -> Image.Image:
    """Return a disc with a round hole of `hole` × the radius, whose centre is `offset` × the radius away."""
    side = math.ceil(2 * radius) + 2
    mask = Image.new("1", (side, side))
    draw, centre = ImageDraw.Draw(mask), (side - 1) / 2
    x, y = centre + offset * radius * math.cos(angle), centre + offset * radius * math.sin(angle)
    draw.ellipse((centre - radius, centre - radius, centre + radius, centre + radius), fill=1)
    if hole:
        draw.ellipse((x - hole * radius, y - hole * radius, x + hole * radius, y + hole * radius), fill=0)
    return mask


def _polygon(radius: float, corners: Sequence[tuple[float, float]], angle: float) -> Image.Image:
    """Return a polygon from its corners in the unit circle."""
    side = math.ceil(2 * radius) + 2
    mask = Image.new("1", (side, side))
    centre, cos, sin = (side - 1) / 2, radius * math.cos(angle), radius * math.sin(angle)
    points = [(centre + x * cos - y * sin, centre + x * sin + y * cos) for x, y in corners]
    ImageDraw.Draw(mask).polygon(points, fill=1)
    return mask


def _wheel(*radii: float, spokes: int) -> list[tuple[float, float]]:
    """Return corners at equal angles whose distances from the centre go through `radii` in turn."""
    steps = [(2 * math.pi * i / spokes, radii[i % len(radii)]) for i in range(spokes)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in steps]


_ARM = [(0.95, 0.285), (0.285, 0.285), (0.285, 0.95)]
_CROSS = [*_ARM, *[(-x, y) for x, y in _ARM[::-1]], *[(-x, -y) for x, y in _ARM], *[(x, -y) for x, y in _ARM[::-1]]]
_ARROW = [(1, 0), (0.1, 0.8), (0.1, 0.3), (-0.95, 0.3), (-0.95, -0.3), (0.1, -0.3), (0.1, -0.8)]

# Name -> function of (radius, angle) that gives a mask; a shape keeps its name however it is turned.
_DRAWINGS: dict[str, Callable[[float, float], Image.Image]] = {
    "circle": lambda radius, angle: _disc(radius, 0, 0, angle),
    "square": lambda radius, angle: _polygon(radius, _wheel(1, spokes=4), angle),
    "triangle": lambda radius, angle: _polygon(radius, _wheel(1, spokes=3), angle),
    "star": lambda radius, angle: _polygon(radius, _wheel(1, 0.4, spokes=10), angle),
    "cross": lambda radius, angle: _polygon(radius, _CROSS, angle),
    "ring": lambda radius, angle: _disc(radius, 0.6, 0, angle),
    "crescent": lambda radius, angle: _disc(radius, 0.8, 0.5, angle),
    "arrow": lambda radius, angle: _polygon(radius, _ARROW, angle),
}
SHAPES: tuple[str, ...] = tuple(_DRAWINGS)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a gradient, stripes or a cloud: `(height, width)` float32 in [-1, 1]."""
    kind = rng.integers(3)
    if kind == 0:
        cells = Image.fromarray(rng.uniform(-1, 1, (5, 5)).astype(np.float32))
        return np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR))
    angle = rng.uniform(0, 2 * math.pi)
    x = np.linspace(-1, 1, width, dtype=np.float32) * math.cos(angle)
    y = np.linspace(-1, 1, height, dtype=np.float32) * math.sin(angle)
    slope = (x[None, :] + y[:, None]) / math.sqrt(2)
    return slope if kind == 1 else np.sin(slope * rng.uniform(8, 40))


def _background(rng: np.random.Generator, height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """Return a textured, noisy canvas and its base colour."""
    base = rng.integers(DARKEST, LIGHTEST + 1, 3)
    tint = rng.uniform(-TEXTURE, TEXTURE, 3).astype(np.float32)
    noise = rng.integers(-NOISE, NOISE + 1, (height, width, 3), dtype=np.int8)
    pixels = noise + (base.astype(np.float32) + _texture(rng, height, width)[..., None] * tint)
    return Image.fromarray(pixels.astype(np.uint8)), base


def _colour(rng: np.random.Generator, base: np.ndarray) -> tuple[int, ...]:
    """Return a random colour that differs from the base colour by at least `CONTRAST` levels in one channel."""
    colour = rng.integers(0, 256, 3)
    channel = rng.integers(3)
    colour[channel] = (base[channel] + rng.integers(CONTRAST, 256 - CONTRAST + 1)) % 256
    return tuple(colour.tolist())


def _draw_image(index: int, seed: int, classes: Sequence[str], size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Return one image of the set: image, boxes, labels, areas and masks, as in a record."""
    rng = np.random.default_rng((seed, index))
    height, width = (int(side) for side in rng.integers(size[0], size[1] + 1, 2))
    canvas, base = _background(rng, height, width)
    owner = np.zeros((height, width), np.int64)  # 0 = background, k = the k-th object
    boxes, labels, areas = [], [], [0]
    visible = np.zeros(1, np.int64)
    # The smaller of two draws: as in photographs, few objects are more common than many.
    for _ in range(rng.integers(MAX_OBJECTS + 1, size=2).min()):
        label = int(rng.integers(len(classes)))
        radius = min(height, width) * rng.uniform(SMALLEST, LARGEST) / 2
        mask = _DRAWINGS[classes[label]](radius, rng.uniform(0, 2 * math.pi))
        mask = mask.crop(mask.getbbox())
        covered = np.asarray(mask)
        for _ in range(PLACEMENT_ATTEMPTS):
            x, y = int(rng.integers(width - mask.width + 1)), int(rng.integers(height - mask.height + 1))
            window = owner[y : y + mask.height, x : x + mask.width]
            left = visible - np.bincount(window[covered], minlength=len(areas))
            if (left[1:] >= MIN_VISIBLE * np.array(areas[1:])).all():
                break
        else:
            continue
        canvas.paste(_colour(rng, base), (x, y), mask)
        window[covered] = len(areas)
        areas.append(int(covered.sum()))
        visible = np.append(left, areas[-1])
        boxes.append((x, y, x + mask.width, y + mask.height))
        labels.append(label)
    return (
        np.asarray(canvas),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int32),
        np.array(areas[1:], np.float32),
        owner == np.arange(1, len(areas))[:, None, None],
    )


def load_shapes(
    count: int,
    seed: int = 0,
    classes: Sequence[str] = ("circle", "square", "triangle"),
    size: tuple[int, int] = (96, 128),
    masks: bool = False,
) -> tuple[tf.data.Dataset, list[str]]:
    """Return a set of `count` drawn images with 0 to 8 objects each.

    Args:
        count: number of images.
        seed: sets with different seeds share no image; a set is a prefix of any longer one of its seed.
        classes: names out of `SHAPES`; a name's place is its label.
        size: (smallest, largest) side; each image's height and width are drawn from it, pixels.
        masks: whether records have `masks`: the pixels that are seen of each object, while its box and its area are of
            all of it.

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`), `image_id` 0 .. count - 1, and the class names.

    Raises:
        ValueError: an unknown or repeated class name, no class, a count below 1, a side below 16 or a size not ordered.
    """
    unknown = [name for name in classes if name not in SHAPES]
    if unknown or not classes or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be different names out of {SHAPES}, not {tuple(classes)}")
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, not {seed}")
    if not 16 <= size[0] <= size[1]:
        raise ValueError(f"size must be (smallest, largest) side with 16 <= smallest <= largest, not {tuple(size)}")
    drawn = {key: RECORD_SPEC[key].dtype for key in ("image", "boxes", "labels", "area")}
    drawn |= {"masks": MASKS_SPEC.dtype} if masks else {}

    @tf.autograph.experimental.do_not_convert
    def read(index: tf.Tensor) -> Record:
        tensors = numpy_call(
            lambda i: _draw_image(int(i), seed, classes, size)[: len(drawn)], [index], list(drawn.values())
        )
        record = dict(zip(drawn, tensors, strict=True))
        record |= {"image_id": index, "orig_size": tf.shape(record["image"])[:2]}
        record["iscrowd"] = tf.zeros_like(record["labels"], tf.bool)
        return with_static_shapes(record) | {READABLE: tf.constant(True)}

    drawn_as = f"{','.join(classes)} {size[0]}-{size[1]} {seed}"

    @tf.autograph.experimental.do_not_convert
    def outline(index: tf.Tensor) -> dict[str, tf.Tensor]:
        # How many objects it has is known only when it is drawn; what it has, by what it is drawn from.
        content = tf.strings.to_hash_bucket_fast(drawn_as, tf.int64.max)
        return {"name": "", "image_id": index, "objects": tf.constant(-1, tf.int64), "content": content}

    entries = tf.data.Dataset.range(count)
    return Reader(entries, read, Validation(), entries_are_small=True, outline_of=outline).dataset(), list(classes)
