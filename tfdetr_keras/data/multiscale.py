"""Multi-scale training: each batch is resized as a whole to one of a known set of sizes.

Which one depends on the seed, the epoch and the number of the batch in it alone, so that the workers of one training
have the same size in the same step, and a training that continues has the sizes of one that never stopped.

Source: lyuwenyu/RT-DETR, `rtdetrv2_pytorch/src/data/dataloader.py`, takes the nearest pixel; roboflow/rf-detr,
`rfdetr/engine.py`, is bilinear, without smoothing. Both do it to a batch that is ready for the model.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import tensorflow as tf

BatchInterpolation = Literal["nearest", "bilinear"]

# RT-DETR's: sides 480 … 800 in steps of 32 for a canvas of 640, which is drawn three times as often as another.
MULTISCALE: tuple[float, ...] = tuple(side / 640 for side in (*range(480, 801, 32), 640, 640))
MULTIPLE = 32  # of pixels, of the sides: the stride of the backbone
STEP = "step"  # target of an example: `(2,)` int64, its epoch, and the number of its batch as far as it is known


class MultiScale(NamedTuple):
    """How batches are resized.

    Attributes:
        factors: of the sides of the canvas; one that is listed several times is drawn more often.
        interpolation: of the pixels; masks take the nearest.
        multiple: sides are rounded to the nearest multiple of this, pixels, unless the factor is 1.
        seed: of the draws.
        plain_from: epoch from which on batches keep their size, or None.
        counts_batches: whether a pass over the batches is an epoch, so that the batches of an epoch can be counted.
            Otherwise the number of a batch is that of its first example.
    """

    factors: tuple[float, ...]
    interpolation: BatchInterpolation
    multiple: int
    seed: int
    plain_from: int | None
    counts_batches: bool


def check_multiscale(factors: Any, interpolation: Any) -> None:
    """Raise a `ValueError` for factors or an interpolation that cannot work."""
    if factors is not None:
        listed = isinstance(factors, Sequence) and not isinstance(factors, str) and len(factors) > 0
        if not listed or not all(isinstance(factor, Real) and 0 < float(factor) < math.inf for factor in factors):
            raise ValueError(
                "multiscale must be None or a list of factors of the canvas, finite and above 0, e.g. "
                f"td.data.MULTISCALE, not {factors!r}"
            )
    if interpolation not in get_args(BatchInterpolation):
        raise ValueError(
            f"multiscale_interpolation must be one of {get_args(BatchInterpolation)}, not {interpolation!r}"
        )


def scaled_side(side: int, factor: float, multiple: int) -> int:
    """Return a canvas's side, pixels, times a factor: the nearest multiple, or the side itself for the factor 1."""
    return side if factor == 1 else math.floor(side * factor / multiple + 0.5) * multiple


def check_sides(canvases: Sequence[tuple[int, int]], scales: MultiScale) -> None:
    """Raise a `ValueError` if a canvas, (height, width), would be left without a pixel."""
    for canvas in canvases:
        for factor in scales.factors:
            if min(scaled_side(side, factor, scales.multiple) for side in canvas) < 1:
                raise ValueError(
                    f"multiscale has the factor {factor:g}, which makes a canvas of {canvas[0]} x {canvas[1]} smaller "
                    f"than half of {scales.multiple} pixels, the multiple that sides are rounded to: leave the factor "
                    "out or make the canvas larger"
                )


def rescaled(batches: tf.data.Dataset, scales: MultiScale, at_once: int = 1) -> tf.data.Dataset:
    """Resize each batch to a size that is drawn for it.

    Args:
        batches: of `pixel_values`, `pixel_mask` and targets, among them `STEP` of each example, which is taken out.
        scales: how.
        at_once: batches that are resized at the same time.

    Returns:
        The batches. Sides that are the same for all of them stay static.
    """

    def resized(count: tf.Tensor, batch: Any) -> Any:
        inputs, targets = batch
        step = targets[STEP][0]
        number = count if scales.counts_batches else step[1]
        targets = {key: value for key, value in targets.items() if key != STEP}
        return _resized(inputs, targets, _drawn(scales, step[0], number), scales)

    return batches.enumerate().map(resized, num_parallel_calls=at_once, deterministic=True)


def _drawn(scales: MultiScale, epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Return the place of a batch's factor, int32; in a plain epoch the one behind the last."""
    seed = tf.random.fold_in(tf.random.fold_in([scales.seed, 2], epoch), number)
    place = tf.random.stateless_uniform((), seed, 0, len(scales.factors), tf.int32)
    return place if scales.plain_from is None else tf.where(epoch < scales.plain_from, place, len(scales.factors))


def _resized(
    inputs: dict[str, tf.Tensor], targets: dict[str, tf.Tensor], place: tf.Tensor, scales: MultiScale
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    pixels, mask = inputs["pixel_values"], inputs["pixel_mask"]
    factors = scales.factors if scales.plain_from is None else (*scales.factors, 1.0)
    pairs = [_sizes(pixels, axis, factors, scales.multiple) for axis in (1, 2)]
    size = tf.stack([sides[place] for sides, _ in pairs])
    old = tf.shape(pixels)[1:3]
    static = [side for _, side in pairs]
    kept = {"masks": targets["masks"]} if "masks" in targets else {}

    def changed() -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        rows, columns = (_nearest(old[axis], size[axis]) for axis in (0, 1))

        def sampled(values: tf.Tensor, axis: int) -> tf.Tensor:
            return tf.gather(tf.gather(values, rows, axis=axis), columns, axis=axis + 1)

        if scales.interpolation == "bilinear":
            new = tf.raw_ops.ResizeBilinear(images=pixels, size=size, half_pixel_centers=True)
        else:
            new = tf.raw_ops.ResizeNearestNeighbor(images=pixels, size=size)
        return new, sampled(mask, 1), {key: sampled(masks, 2) for key, masks in kept.items()}

    pixels, mask, kept = tf.cond(tf.reduce_all(size == old), lambda: (pixels, mask, kept), changed)
    batch = pixels.shape[0]
    inputs = {
        "pixel_values": tf.ensure_shape(pixels, (batch, *static, 3)),
        "pixel_mask": tf.ensure_shape(mask, (batch, *static)),
    }
    rows = targets["labels"].shape[1]
    return inputs, targets | {key: tf.ensure_shape(masks, (batch, rows, *static)) for key, masks in kept.items()}


def _sizes(pixels: tf.Tensor, axis: int, factors: Sequence[float], multiple: int) -> tuple[tf.Tensor, int | None]:
    """Return the length of a side by each factor `(factors,)` int32, and the one length where they have only one."""
    side = pixels.shape[axis]
    if side is not None:
        sides = [scaled_side(side, factor, multiple) for factor in factors]
        return tf.constant(sides), sides[0] if len(set(sides)) == 1 else None
    length = tf.shape(pixels)[axis]
    steps = tf.floor(tf.cast(length, tf.float64) * tf.constant(factors, tf.float64) / multiple + 0.5)
    rounded = tf.maximum(tf.cast(steps, tf.int32), 1) * multiple
    return tf.where(tf.constant(factors) == 1.0, length, rounded), None


def _nearest(old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
    """Return the source of each place along an axis, as torch's `interpolate` and `ResizeNearestNeighbor` take it."""
    scale = tf.cast(old, tf.float32) / tf.cast(new, tf.float32)
    return tf.minimum(tf.cast(tf.floor(tf.cast(tf.range(new), tf.float32) * scale), tf.int32), old - 1)
