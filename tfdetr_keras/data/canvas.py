"""The images of a batch on their canvas: normalised pixels, zeros around them, and the mask that separates the two.

A canvas is the area, `(height, width)` in pixels, that all images of a batch are padded to; images lie at its top left.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.buffers import BufferPool
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.preprocessing import Preprocessing


def factor_and_shift(preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Return the factor and the shift that normalise levels 0 … 255 as x · factor − shift, `(3,)` float32 each.

    This equals (x · rescale − mean) / deviation, with one step less.
    """
    deviation = np.array(preprocessing.std)
    factor, shift = preprocessing.rescale / deviation, np.array(preprocessing.mean) / deviation
    return factor.astype(np.float32), shift.astype(np.float32)


def canvas_painter(preprocessing: Preprocessing) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Return a function that turns padded levels into a model's inputs; it keeps memory for reuse.

    Args:
        preprocessing: of the model.

    The function takes levels `(batch, height, width, 3)` uint8 and sizes `(batch, 2)` int, the height and width of each
    image at the top left of its canvas. It returns `pixel_values` `(batch, height, width, 3)` float32,
    normalised in the image and 0 in the padding, and `pixel_mask` `(batch, height, width)`
    int32, 1 = image.
    """
    pool = BufferPool()
    factor_of_pixel, shift_of_pixel = factor_and_shift(preprocessing)

    def paint(levels: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels, mask = pool.empty(levels.shape, np.float32), pool.empty(levels.shape[:3], np.int32)
        # As rows of width × 3 numbers: several times faster than broadcasting over an axis of 3.
        rows, row_levels = (array.reshape(*array.shape[:2], -1) for array in (pixels, levels))
        factor, shift = (np.tile(values, levels.shape[2]) for values in (factor_of_pixel, shift_of_pixel))
        for place, (height, width) in enumerate(sizes.tolist()):
            image = rows[place, :height, : 3 * width]
            np.multiply(row_levels[place, :height, : 3 * width], factor[: 3 * width], out=image)
            np.subtract(image, shift[: 3 * width], out=image)
            mask[place, :height, :width] = 1
            for canvas, right in ((rows[place], 3 * width), (mask[place], width)):
                canvas[height:] = 0
                canvas[:height, right:] = 0
        return pixels, mask

    def painted(levels: tf.Tensor, sizes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels, mask = numpy_call(paint, [levels, sizes], [tf.float32, tf.int32])
        return tf.ensure_shape(pixels, levels.shape), tf.ensure_shape(mask, levels.shape[:3])

    return painted
