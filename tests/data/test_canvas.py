import gc

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.buffers import ALIGNMENT, BufferPool
from tfdetr_keras.data.canvas import canvas_painter
from tfdetr_keras.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


def test_pixels_zeros_and_mask():
    """In float64 by the definition; the levels beside an image do not matter."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (3, 17, 23, 3)).astype(np.uint8)
    sizes = np.array([[17, 23], [5, 9], [1, 23]])
    expected = (levels / 255 - IMAGENET_MEAN) / IMAGENET_STD
    inside = (np.arange(17)[:, None] < sizes[:, 0, None, None]) & (np.arange(23) < sizes[:, 1, None, None])
    paint = canvas_painter(Preprocessing())
    for _ in range(3):  # on memory that was used before, too
        pixels, mask = paint(tf.constant(levels), tf.constant(sizes, tf.int32))
        np.testing.assert_allclose(pixels, np.where(inside[..., None], expected, 0), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(mask, inside)
        assert (pixels.dtype, mask.dtype) == (tf.float32, tf.int32)
        del pixels, mask


def test_what_is_held_is_never_handed_out_again():
    """Batches that a reader keeps must not change under its hands, however many come after."""
    paint = canvas_painter(Preprocessing())
    sizes = tf.constant([[6, 8]], tf.int32)
    dataset = tf.data.Dataset.range(40).map(lambda level: paint(tf.fill((1, 6, 8, 3), tf.cast(level, tf.uint8)), sizes))
    kept = [pixels.numpy() for pixels, _ in dataset.prefetch(3)]
    for level, pixels in enumerate(kept):
        expected = (level / 255 - np.array(IMAGENET_MEAN)) / IMAGENET_STD
        np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=1e-6)


def test_memory_comes_back_and_only_once():
    pool = BufferPool()
    first, second = pool.empty((4, 5), np.float32), pool.empty((7,), np.int32)
    assert first.ctypes.data % ALIGNMENT == second.ctypes.data % ALIGNMENT == 0
    assert first.flags.c_contiguous
    place, view = first.ctypes.data, first[1:]
    del first
    stranger = pool.empty((4, 5), np.float32)
    assert not np.shares_memory(stranger, view)  # somebody still looks at a part of it
    del view
    gc.collect()
    again = pool.empty((2, 3), np.float32)
    assert again.ctypes.data == place
    assert not np.shares_memory(pool.empty((2, 3), np.float32), again)


def test_memory_is_bounded_by_what_is_in_use():
    """Whatever the sizes, growing ones included."""
    pool = BufferPool()
    for size in range(10, 300):
        held = [pool.empty((size * 100,), np.uint8) for _ in range(2)]
        del held
    pool.empty((1,), np.uint8)
    assert len(pool._idle) + pool._returned.qsize() <= 2
