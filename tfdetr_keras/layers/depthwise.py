"""A convolution of each channel alone, which XLA on a CPU computes fast, too.

TensorFlow's and PyTorch's own routines are good. XLA's, on a CPU, takes some 50 times as long as TensorFlow's: to it
this is a convolution of as many groups as there are channels. There, the layer spells out what it sums: each element of
the kernel times the map, shifted. XLA makes one loop of that, which reads what it needs from the cache.

So do the gradients. That of the map is the same sum, with the kernel turned around. That of the kernel is a sum over
all pixels of all images, for which XLA's own order of summation is slow as well: rows are added up one after another,
for all columns at once, and their sums then by a product of matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from tfdetr_keras.backend.compiler import compiled, is_for_xla_on_cpu


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class DepthwiseConvolution(layers.DepthwiseConv2D):
    """A convolution of each channel alone, padded alike on all sides by half the kernel, as PyTorch's networks have it.

    Its weights are those of `keras.layers.DepthwiseConv2D`: `kernel`, `(kernel_size, kernel_size, channels, 1)`, and
    `bias`, `(channels,)`.

    Args:
        kernel_size: odd.
        strides: of rows and of columns; 1 keeps height and width.
        use_bias: whether a learned number is added to each channel.
        depthwise_initializer: of the kernel.
        bias_initializer: of the bias.
        **kwargs: `name` and `dtype`, as for `keras.layers.Layer`.

    Raises:
        ValueError: if the kernel's size is even.
    """

    def __init__(
        self,
        kernel_size: int,
        strides: int = 1,
        use_bias: bool = True,
        depthwise_initializer: keras.initializers.Initializer | str = "glorot_uniform",
        bias_initializer: keras.initializers.Initializer | str = "zeros",
        **kwargs: Any,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, to be padded alike on all sides, not {kernel_size}")
        super().__init__(
            kernel_size,
            strides=strides,
            padding="same",  # which has outputs of the same sizes, in other places where there is a stride
            data_format="channels_last",
            use_bias=use_bias,
            depthwise_initializer=depthwise_initializer,
            bias_initializer=bias_initializer,
            **kwargs,
        )

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Map as `call`, by another kernel and without a bias, as that of `keras.layers.Conv2D` does."""
        return depthwise_convolution(inputs, kernel, self.strides[0])

    def call(self, inputs: Any) -> Any:
        """Map `(batch, height, width, channels)` → `(batch, ⌈height/strides⌉, ⌈width/strides⌉, channels)`."""
        outputs = self.convolution_op(inputs, self.kernel)
        return outputs if self.bias is None else outputs + self.bias

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config = super().get_config()
        names = ("name", "trainable", "dtype", "use_bias", "depthwise_initializer", "bias_initializer")
        sizes = {"kernel_size": self.kernel_size[0], "strides": self.strides[0]}
        return {name: config[name] for name in names} | sizes


def depthwise_convolution(x: Any, kernel: Any, stride: int = 1) -> Any:
    """Convolve each channel alone, with zeros around the map, half the kernel's size wide.

    Where XLA compiles it for a CPU, sums are of float32 (float64 where the map is). Elsewhere it is the backend's own
    operation, also in what is exported.

    Args:
        x: `(batch, height, width, channels)` float.
        kernel: `(size, size, channels, 1)`, of an odd size.
        stride: of rows and of columns.

    Returns:
        `(batch, ⌈height/stride⌉, ⌈width/stride⌉, channels)`, of x's dtype.
    """
    x, kernel = ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)
    if is_for_xla_on_cpu():
        dtype = keras.backend.result_type(x.dtype, "float32")
        summed = _shifted_products(kernel.shape[0], stride)(ops.cast(x, dtype), ops.cast(kernel, dtype))
        return ops.cast(summed, x.dtype)
    if stride == 1:
        return ops.depthwise_conv(x, kernel, padding="same", data_format="channels_last")
    return ops.depthwise_conv(_padded(x, kernel.shape[0]), kernel, stride, "valid", data_format="channels_last")


def _padded(x: Any, size: int) -> Any:
    """Zero-pad height and width for a kernel of a size."""
    around = [size // 2, size // 2]
    return ops.pad(x, [[0, 0], around, around, [0, 0]])


def _shifted(size: int, stride: int) -> list[slice]:
    """Return the part of a padded axis that each element of the kernel meets, from the first element to the last."""
    return [slice(first, first - size + 1 or None, stride) for first in range(size)]


def _sum_of_shifted(size: int, stride: int, x: Any, kernel: Any) -> Any:
    """Return the convolution, as `depthwise_convolution`."""
    x, parts, total = _padded(x, size), _shifted(size, stride), None
    for row, rows in enumerate(parts):
        for column, columns in enumerate(parts):
            product = x[:, rows, columns] * kernel[row, column, :, 0]
            total = product if total is None else total + product
    return total


def _gradients(size: int, stride: int, x: Any, kernel: Any, d_outputs: Any) -> tuple[Any, Any]:
    """Return the gradients of the map and of the kernel."""
    apart = _with_zeros_between(d_outputs, stride)[:, : ops.shape(x)[1], : ops.shape(x)[2]]
    d_x = _sum_of_shifted(size, 1, apart, ops.flip(kernel, (0, 1)))
    return d_x, _kernel_gradient(size, stride, x, d_outputs)


def _with_zeros_between(x: Any, stride: int) -> Any:
    """Spread pixels so that each is a stride from the next."""
    if stride == 1:
        return x
    batch, height, width, channels = ops.shape(x)
    x = ops.reshape(x, (batch, height, 1, width, 1, channels))
    none, zeros = [0, 0], [0, stride - 1]
    x = ops.pad(x, [none, none, zeros, none, zeros, none])
    return ops.reshape(x, (batch, height * stride, width * stride, channels))


def _kernel_gradient(size: int, stride: int, x: Any, d_outputs: Any) -> Any:
    """Return the sum over all pixels of each part of the map that an element meets times the outputs' gradient."""
    x, parts = _padded(x, size), _shifted(size, stride)
    (images, height, width), channels = ops.shape(d_outputs)[:3], d_outputs.shape[3]

    def add_row(number: Any, sums: tuple[Any, ...]) -> tuple[Any, ...]:
        image, row = number // height, number % height
        met = ops.slice(x, (image, row * stride, 0, 0), (1, size, ops.shape(x)[2], channels))[0]
        d_row = ops.slice(d_outputs, (image, row, 0, 0), (1, 1, width, channels))[0]
        return tuple(one + met[:, columns] * d_row for one, columns in zip(sums, parts, strict=True))

    # For each column of the kernel `(rows of the kernel, width, channels)`.
    sums = tuple(ops.zeros((size, width, channels), x.dtype) for _ in parts)
    sums = ops.fori_loop(0, images * height, add_row, sums)
    ones = ops.ones((1, width), x.dtype)
    return ops.stack([ops.matmul(ones, one) for one in sums], axis=1)[:, :, 0, :, None]


@functools.cache
def _shifted_products(size: int, stride: int) -> Callable[[Any, Any], Any]:
    """Make the function of a map and a kernel for one size and stride, with its gradient."""
    forward = compiled(functools.partial(_sum_of_shifted, size, stride))
    backward = compiled(functools.partial(_gradients, size, stride))

    @ops.custom_gradient
    def convolve(x: Any, kernel: Any) -> tuple[Any, Any]:
        def gradient(d_outputs: Any) -> tuple[Any, Any]:
            return backward(x, kernel, d_outputs)

        return forward(ops.stop_gradient(x), ops.stop_gradient(kernel)), gradient

    return convolve
