"""Multi-scale deformable attention (Deformable DETR, equation 3), in the graph of whatever backend Keras runs on.

A query does not look at all positions of the feature maps but at a few points of each: the output of a head is the sum
of the values at these points, read between pixels, times their attention weights. The points and the weights are given;
the layer of `deformable` makes them.

The implementation suits machines that compute on whole arrays. All levels lie in one table of rows, one for each token
and head, so that the four pixels around every point of every level are read by one gather. Interpolation and attention
weight are one factor of a row, and the sum over the rows is a product of matrices.

The rows are by far the largest array, several hundred times the values. Where that is too much, queries are worked on
block by block, forward and back, and nothing but the arguments is kept between the two.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from tfdetr_keras.backend.compiler import compiled, compiles, one_of_few_sizes

# Rows worked on at a time where they are not kept, in bytes of float32: few enough for a processor's cache. Not so on
# PyTorch, where to write a block into an array Keras copies it as a whole, so that blocks have to be few.
BLOCK_BYTES = 2**28 if keras.backend.backend() == "torch" else 2**21
# From this size on, in bytes of float32, rows are not kept where nothing is compiled, if the caller leaves that open.
KEPT_BYTES = 2**28


def deformable_attention(
    value: Any,
    spatial_shapes: Any,
    locations: Any,
    weights: Any,
    points_per_level: Sequence[int] | None = None,
    sampling: str = "bilinear",
    recompute: bool | None = None,
) -> Any:
    """Sum values at points of several feature maps, weighted by attention.

    This is what the CUDA kernel of Deformable DETR computes, and `grid_sample` of PyTorch level by level (zeros
    outside, corners not aligned): head m of query q is Σₗ Σₚ Aₘₗₚ · vₘₗ(xₘₗₚ), where vₘₗ(x) is level l's value at the
    point x, interpolated between the centres of its four nearest pixels, and what lies outside the map is 0.

    It is compiled by the backend (XLA on TensorFlow and JAX), also in eager calls, once per shape of value and
    locations, whatever the levels' heights and widths. Sizes unknown while a TensorFlow graph is traced are rounded up,
    by an eighth at most, so that no more than 8 sizes from one power of two to the next are compiled.

    Gradients flow to value, locations and weights. Numbers are float32 inside, also where the value is of half
    precision (float64 where the value is).

    Args:
        value: `(batch, tokens, heads, channels)` float; tokens are the pixels of all levels, level after level, each
            row by row.
        spatial_shapes: `(levels, 2)` integers, height and width of each level: numbers, an array or a tensor.
        locations: `(batch, queries, heads, points, 2)` float, x and y of all levels' points, level after level,
            relative to the map: (0, 0) is the corner of the first pixel, (1, 1) that of the last. May lie outside.
        weights: `(batch, queries, heads, points)` float; a softmax over points, usually.
        points_per_level: how many points each level has; equally many where left out.
        sampling: `"bilinear"`; or `"discrete"`, which reads the one pixel that RT-DETRv2 reads, at x · width + ½ and
            y · height + ½ with the fraction cut off, and the map's nearest pixel for points outside. Along each axis
            that is the pixel that holds the point where it lies in the pixel's first half, else the next. No gradient
            flows to the locations then.
        recompute: whether the rows that are read are read again on the way back rather than kept. They take
            4 · 4 · batch · queries · heads · points · channels bytes (`"discrete"`: a quarter). None does so where it
            is compiled, since it is as fast there; elsewhere, on PyTorch, from 256 MiB on.

    Returns:
        `(batch, queries, heads · channels)`, of value's dtype.

    Raises:
        ValueError: if shapes do not fit each other, the levels have not as many pixels as there are tokens (where
            both are numbers), or sampling is unknown.

    Source:
        X. Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021, equation
        3; W. Lv et al., "RT-DETRv2", arXiv:2407.17140, section 3.2, for discrete sampling.
    """
    if sampling not in _AXES:
        raise ValueError(f"sampling must be one of {', '.join(map(repr, _AXES))}, got {sampling!r}")
    value, locations, weights = map(ops.convert_to_tensor, (value, locations, weights))
    _check_shapes(value, locations, weights)
    points = locations.shape[3]
    maps = _map_of_each_point(spatial_shapes, points_per_level, points, value.shape[1])

    dtype = keras.backend.result_type(value.dtype, "float32")
    table, *given = (ops.cast(one, dtype) for one in (value, locations, weights))
    (batch, queries), tokens = ops.shape(locations)[:2], ops.shape(value)[1]
    channels = value.shape[2] * value.shape[3]
    if 0 in tuple(locations.shape[:2]):
        return ops.zeros((batch, queries, channels), value.dtype)
    if not isinstance(tokens, int):
        table = _round_up(table, tokens)
    if not isinstance(queries, int):
        given = [_round_up(one, queries) for one in given]
    if recompute is None:
        pixels = 4 if sampling == "bilinear" else 1
        is_known = isinstance(queries, int)
        recompute = compiles() or not is_known or queries * pixels * _bytes_of_a_query(weights, value) > KEPT_BYTES
    attended = (_RECOMPUTING if recompute else _KEEPING)[sampling](table, *given, ops.cast(maps, dtype))
    attended = attended if isinstance(queries, int) else attended[:, :queries]
    return ops.cast(ops.reshape(attended, (batch, queries, channels)), value.dtype)


def _check_shapes(value: Any, locations: Any, weights: Any) -> None:
    """Refuse arguments whose shapes do not fit each other; unknown sizes fit."""
    if len(value.shape) != 4:
        raise ValueError(f"value must have shape (batch, tokens, heads, channels), got {tuple(value.shape)}")
    if len(locations.shape) != 5 or locations.shape[-1] != 2:
        raise ValueError(f"locations must have shape (batch, queries, heads, points, 2), got {tuple(locations.shape)}")
    for axis, name in ((0, "batch"), (2, "heads")):
        if not _fits(value.shape[axis], locations.shape[axis]):
            raise ValueError(
                f"value and locations must have the same {name}: value has shape {tuple(value.shape)}, locations have "
                f"{tuple(locations.shape)}"
            )
    if len(weights.shape) != 4 or not all(map(_fits, weights.shape, locations.shape[:4])):
        raise ValueError(
            f"weights must have the shape of locations without the last axis, {tuple(locations.shape[:4])}, got "
            f"{tuple(weights.shape)}"
        )
    for name, one, sizes in (("value", value, value.shape[2:]), ("locations", locations, locations.shape[2:])):
        if None in tuple(sizes):
            raise ValueError(
                f"heads, channels and points must be known while the graph is traced, got {name} of shape "
                f"{tuple(one.shape)}: reshape it to known sizes"
            )


def _fits(size: int | None, other: int | None) -> bool:
    return size is None or other is None or size == other


def _map_of_each_point(
    spatial_shapes: Any, points_per_level: Sequence[int] | None, points: int, tokens: int | None
) -> Any:
    """Return width, height and first token of the level of each point, `(3, points)` int32."""
    sizes = _known_sizes(spatial_shapes)
    shapes = ops.cast(ops.convert_to_tensor(spatial_shapes if sizes is None else sizes), "int32")
    if len(shapes.shape) != 2 or shapes.shape[1] != 2 or shapes.shape[0] == 0:
        raise ValueError(f"spatial_shapes must have shape (levels, 2), height and width, got {tuple(shapes.shape)}")
    if sizes is not None and not all(height > 0 and width > 0 for height, width in sizes):
        raise ValueError(f"spatial_shapes must be positive, got {sizes}")
    if sizes is not None and not _fits(tokens, sum(height * width for height, width in sizes)):
        products = " + ".join(f"{height}·{width}" for height, width in sizes)
        pixels = sum(height * width for height, width in sizes)
        raise ValueError(
            f"value has {tokens} tokens, but the levels of spatial_shapes have {products} = {pixels} pixels: give each "
            "level's height and width, in the order in which value holds them"
        )
    if points_per_level is None:
        levels = ops.shape(shapes)[0]
        if isinstance(levels, int) and points % levels:
            raise ValueError(
                f"locations have {points} points, which {levels} levels cannot share equally: give points_per_level"
            )
        level = ops.arange(points, dtype="int32") * levels // points
    else:
        points_per_level = list(points_per_level)
        if not _fits(shapes.shape[0], len(points_per_level)):
            raise ValueError(
                f"points_per_level must have an entry for each of the {shapes.shape[0]} levels, got {points_per_level}"
            )
        if any(number < 0 for number in points_per_level) or sum(points_per_level) != points:
            raise ValueError(
                f"points_per_level must sum to the {points} points of locations, got {points_per_level}, sum "
                f"{sum(points_per_level)}"
            )
        level = [level for level, number in enumerate(points_per_level) for _ in range(number)]
        level = ops.convert_to_tensor(level, dtype="int32")
    height, width = shapes[:, 0], shapes[:, 1]
    start = ops.cumsum(height * width) - height * width
    return ops.take(ops.stack([width, height, ops.cast(start, "int32")]), level, axis=1)


def _known_sizes(spatial_shapes: Any) -> list[list[int]] | None:
    """Return heights and widths as numbers, or None if they are tensors or not rows of two."""
    if ops.is_tensor(spatial_shapes):
        return None
    rows = [list(row) if hasattr(row, "__len__") else [row] for row in spatial_shapes]
    is_known = all(len(row) == 2 and isinstance(size, numbers.Integral) for row in rows for size in row)
    return [[int(size) for size in row] for row in rows] if rows and is_known else None


def _round_up(array: Any, size: Any) -> Any:
    """Pad axis 1, of a size unknown until run time, with zeros to one of few sizes.

    Queries made of zeros have no weight. Tokens beyond the last are never read.
    """
    more = one_of_few_sizes(size) - size
    return ops.pad(array, [[0, more if axis == 1 else 0] for axis in range(len(array.shape))])


def _bytes_of_a_query(weights: Any, table: Any) -> int:
    """Return what one query's rows take in all images for a pixel of each point; an unknown batch counts as one."""
    return 4 * (weights.shape[0] or 1) * math.prod(weights.shape[2:]) * table.shape[3]


def _two_nearest(location: Any, size: Any) -> tuple[Any, Any, Any]:
    """Find the two pixels along one axis between whose centres a location lies.

    Args:
        location: `(…, points)`, from 0 to 1 inside.
        size: `(points,)` pixels.

    Returns:
        `(…, points, 2)` int32, the pixels' indices, clipped to those there are; their parts in the interpolation, 0 for
        pixels outside; and the derivatives of these with respect to the location.
    """
    position = location * size - 0.5
    first = ops.floor(position)
    fraction = (position - first)[..., None]
    pixel = ops.concatenate([first[..., None], first[..., None] + 1], axis=-1)
    inside = ops.cast(ops.logical_and(pixel >= 0, pixel < size[:, None]), location.dtype)
    part = ops.concatenate([1 - fraction, fraction], axis=-1) * inside
    slope = ops.stack([-size, size], axis=-1) * inside
    return _clipped(pixel, size), part, slope


def _half_a_pixel_on(location: Any, size: Any) -> tuple[Any, Any, Any]:
    """Find the one pixel that RT-DETRv2 takes along one axis; the rest as `_two_nearest`, `(…, points, 1)`."""
    pixel = (location * size + 0.5)[..., None]
    return _clipped(pixel, size), ops.ones_like(pixel), ops.zeros_like(pixel)


def _clipped(pixel: Any, size: Any) -> Any:
    # Integers are clipped, not floats, so that not even NaN reads beyond the table.
    return ops.clip(ops.cast(pixel, "int32"), 0, ops.cast(size, "int32")[:, None] - 1)


_AXES: dict[str, Callable[[Any, Any], tuple[Any, Any, Any]]] = {
    "bilinear": _two_nearest,
    "discrete": _half_a_pixel_on,
}


def _pixels(
    axis: Callable[..., Any], table: Any, locations: Any, maps: Any, image: Any = 0
) -> tuple[Any, Any, Any, Any, Any]:
    """Return the rows to read, `(images, queries, heads, points, y, x)` int32, and parts and slopes of x and of y.

    `image` is the number of the first image of `locations`.
    """
    tokens, heads = ops.shape(table)[1:3]
    width, height, start = maps[0], maps[1], ops.cast(maps[2], "int32")
    column, part_x, slope_x = axis(locations[..., 0], width)
    line, part_y, slope_y = axis(locations[..., 1], height)
    token = line[..., :, None] * ops.cast(width, "int32")[:, None, None] + column[..., None, :]
    token = token + start[:, None, None]
    images = image + ops.arange(ops.shape(locations)[0], dtype="int32")
    head = ops.reshape(ops.arange(heads, dtype="int32"), (-1, 1, 1, 1))
    return (ops.reshape(images, (-1, 1, 1, 1, 1, 1)) * tokens + token) * heads + head, part_x, slope_x, part_y, slope_y


def _read(table: Any, rows: Any) -> Any:
    """Read rows of the table, `(batch, queries, heads, points · pixels, channels)`."""
    channels = table.shape[3]
    values = ops.take(ops.reshape(table, (-1, channels)), rows, axis=0)
    return ops.reshape(values, (*ops.shape(rows)[:3], math.prod(rows.shape[3:]), channels))


def _attend(axis: Callable[..., Any], table: Any, locations: Any, weights: Any, maps: Any, image: Any = 0) -> Any:
    """Compute the whole of it at once: `(images, queries, heads, channels)`."""
    rows, part_x, _, part_y, _ = _pixels(axis, table, locations, maps, image)
    return _sum_of(_read(table, rows), part_x, part_y, weights)


def _sum_of(values: Any, part_x: Any, part_y: Any, weights: Any) -> Any:
    """Return the weighted sum of rows that were read, `(images, queries, heads, channels)`."""
    factor = part_y[..., :, None] * part_x[..., None, :] * weights[..., None, None]
    factor = ops.reshape(factor, (*ops.shape(values)[:3], 1, values.shape[3]))
    return ops.matmul(factor, values)[:, :, :, 0]


def _gradients(
    axis: Callable[..., Any],
    table: Any,
    locations: Any,
    weights: Any,
    maps: Any,
    image: Any,
    d_outputs: Any,
    d_table: Any,
    values: Any = None,
) -> tuple[Any, Any, Any]:
    """Add to `d_table`, one row for each of the table's, and return it and the gradients of locations and weights.

    The rows are read once more unless they are given, as `values`.
    """
    rows, part_x, slope_x, part_y, slope_y = _pixels(axis, table, locations, maps, image)
    values = _read(table, rows) if values is None else values
    d_factor = ops.reshape(ops.matmul(values, d_outputs[..., None]), ops.shape(rows))
    of_x, of_y = ops.sum(d_factor * part_y[..., :, None], axis=-2), ops.sum(d_factor * part_x[..., None, :], axis=-1)
    d_weights = ops.sum(of_x * part_x, axis=-1)
    d_locations = ops.stack([ops.sum(of_x * slope_x, axis=-1), ops.sum(of_y * slope_y, axis=-1)], axis=-1)
    factor = part_y[..., :, None] * part_x[..., None, :] * weights[..., None, None]
    d_values = ops.reshape(factor, (*ops.shape(values)[:4], 1)) * d_outputs[..., None, :]
    d_values = ops.reshape(d_values, (-1, table.shape[3]))
    d_table = ops.scatter_update(d_table, ops.reshape(rows, (-1, 1)), d_values, reduction="add")
    return d_table, d_locations * weights[..., None], d_weights


class _Blocks:
    """Blocks of queries of one image each, so that what a block reads lies close together."""

    def __init__(self, table: Any, weights: Any) -> None:
        self.batch, self.queries = ops.shape(weights)[:2]
        row_bytes = 4 * 4 * math.prod(weights.shape[2:]) * table.shape[3]
        self.size = max(1, BLOCK_BYTES // row_bytes)
        self.of_an_image = (self.queries + self.size - 1) // self.size  # rounded up; ONNX divides towards zero
        if isinstance(self.queries, int):
            self.size = -(-self.queries // self.of_an_image)  # of equal size, so that little is padded
        self.number = self.batch * self.of_an_image

    def padded(self, array: Any) -> Any:
        """Pad `(batch, queries, …)` to whole blocks; queries of zeros have no weight."""
        more = self.of_an_image * self.size - self.queries
        if isinstance(more, int) and more == 0:
            return array
        return ops.pad(array, [[0, 0], [0, more], *[[0, 0]] * (len(array.shape) - 2)])

    def image(self, block: Any) -> Any:
        """Return the number of a block's image."""
        return block // self.of_an_image

    def read(self, array: Any, block: Any) -> Any:
        """Return a block, `(1, size, …)`, of a padded array."""
        last = ops.shape(array)[2:]
        start = (self.image(block), block % self.of_an_image * self.size, *[0] * len(last))
        return ops.slice(array, start, (1, self.size, *last))

    def empty(self, *last: Any, dtype: Any) -> Any:
        """Make the array of all blocks' results, `(blocks, size, …)`."""
        return ops.zeros((self.number, self.size, *last), dtype)

    def write(self, results: Any, block: Any, result: Any) -> Any:
        """Write a block's result, `(1, size, …)`, to its place among all."""
        place = ops.reshape(ops.convert_to_tensor(block, dtype="int32"), (1, 1))
        return ops.scatter_update(results, place, result)

    def joined(self, results: Any) -> Any:
        """Return all blocks' results as `(batch, queries, …)`."""
        last = ops.shape(results)[2:]
        return ops.reshape(results, (self.batch, self.of_an_image * self.size, *last))[:, : self.queries]


def _attend_block_by_block(axis: Callable[..., Any], table: Any, locations: Any, weights: Any, maps: Any) -> Any:
    """Compute the same as `_attend`, with the rows of one block of queries at a time."""
    blocks = _Blocks(table, weights)
    locations, weights = blocks.padded(locations), blocks.padded(weights)

    def step(block: Any, outputs: Any) -> Any:
        there, parts = blocks.read(locations, block), blocks.read(weights, block)
        return blocks.write(outputs, block, _attend(axis, table, there, parts, maps, blocks.image(block)))

    outputs = blocks.empty(*table.shape[2:], dtype=table.dtype)
    return blocks.joined(ops.fori_loop(0, blocks.number, step, outputs))


def _gradients_block_by_block(
    axis: Callable[..., Any], table: Any, locations: Any, weights: Any, maps: Any, d_outputs: Any
) -> tuple[Any, Any, Any]:
    """Return the gradients of table, locations and weights; each block's rows are read once more."""
    blocks = _Blocks(table, weights)
    locations, weights, d_outputs = map(blocks.padded, (locations, weights, d_outputs))

    def step(block: Any, state: Any) -> Any:
        d_table, d_locations, d_weights = state
        there, parts, d_block = (blocks.read(one, block) for one in (locations, weights, d_outputs))
        d_table, of_locations, of_weights = _gradients(
            axis, table, there, parts, maps, blocks.image(block), d_block, d_table
        )
        return d_table, blocks.write(d_locations, block, of_locations), blocks.write(d_weights, block, of_weights)

    state = (
        ops.zeros_like(ops.reshape(table, (-1, table.shape[3]))),
        blocks.empty(*locations.shape[2:], dtype=table.dtype),
        blocks.empty(*weights.shape[2:], dtype=table.dtype),
    )
    d_table, d_locations, d_weights = ops.fori_loop(0, blocks.number, step, state)
    return ops.reshape(d_table, ops.shape(table)), blocks.joined(d_locations), blocks.joined(d_weights)


def _recomputing(axis: Callable[..., Any]) -> Callable[..., Any]:
    """Make the function that keeps its arguments alone for the way back."""
    forward = compiled(functools.partial(_attend_block_by_block, axis))
    backward = compiled(functools.partial(_gradients_block_by_block, axis))

    @ops.custom_gradient
    def attend(table: Any, locations: Any, weights: Any, maps: Any) -> tuple[Any, Any]:
        def gradient(*arguments: Any, upstream: Any = None) -> tuple[Any, ...]:
            # PyTorch's backend gives the arguments of the function and, by name, the gradient; the others that alone.
            d_outputs = arguments[0] if upstream is None else upstream
            return (*backward(table, locations, weights, maps, d_outputs), ops.zeros_like(maps))

        # Eager TensorFlow would make ready to differentiate the loop itself, and keep what each turn computes.
        given = map(ops.stop_gradient, (table, locations, weights, maps))
        return forward(*given), gradient

    return attend


def _read_at(axis: Callable[..., Any], table: Any, locations: Any, maps: Any) -> Any:
    """Read the rows around locations, see `_read`."""
    return _read(table, _pixels(axis, table, locations, maps)[0])


def _keeping(axis: Callable[..., Any], read: Callable[..., Any]) -> Callable[..., Any]:
    """Make the function that keeps the rows for the way back.

    Its gradient is written, too: TensorFlow's own would hand shapes from one compiled function to the other, for which
    XLA takes all arguments for constants where it compiles the two together, and so compiles them anew in each step.
    """

    @compiled
    def combine(values: Any, locations: Any, weights: Any, maps: Any) -> Any:
        (_, part_x, _), (_, part_y, _) = (axis(locations[..., place], maps[place]) for place in (0, 1))
        return _sum_of(values, part_x, part_y, weights)

    @compiled
    def backward(table: Any, values: Any, locations: Any, weights: Any, maps: Any, d_outputs: Any) -> tuple[Any, ...]:
        empty = ops.zeros_like(ops.reshape(table, (-1, table.shape[3])))
        d_table, *others = _gradients(axis, table, locations, weights, maps, 0, d_outputs, empty, values)
        return ops.reshape(d_table, ops.shape(table)), *others

    @ops.custom_gradient
    def attend(table: Any, locations: Any, weights: Any, maps: Any) -> tuple[Any, Any]:
        given = [ops.stop_gradient(one) for one in (table, locations, weights, maps)]
        values = read(given[0], given[1], given[3])

        def gradient(*arguments: Any, upstream: Any = None) -> tuple[Any, ...]:
            d_outputs = arguments[0] if upstream is None else upstream
            return (*backward(table, values, locations, weights, maps, d_outputs), ops.zeros_like(maps))

        return combine(values, *given[1:]), gradient

    return attend


_READING = {sampling: compiled(functools.partial(_read_at, axis)) for sampling, axis in _AXES.items()}
_KEEPING = {sampling: _keeping(axis, _READING[sampling]) for sampling, axis in _AXES.items()}
_RECOMPUTING = {sampling: _recomputing(axis) for sampling, axis in _AXES.items()}
