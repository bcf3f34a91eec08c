"""Padding masks and position embeddings, against PyTorch and the paper's formula."""

import math

import numpy as np
import pytest

from tfdetr_keras.layers.position import LearnedPositionEmbedding, SinePositionEmbedding
from tfdetr_keras.layers.resize import resize_nearest


def test_masks_shrink_as_in_pytorch(pytorch):
    """A mask whose cells all differ shows which source cell each output cell takes."""
    rng = np.random.default_rng(0)
    sizes = [(int(height), int(width)) for height, width in rng.integers(1, 400, (100, 2))]
    sizes = [(*size, *(int(rng.integers(1, side + 1)) for side in size)) for size in sizes]
    for (height, width, *smaller), expected in zip(sizes, pytorch.call("layers:nearest", sizes), strict=True):
        mask = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
        np.testing.assert_array_equal(resize_nearest(mask, *smaller), expected)


def test_the_stride_of_the_backbone(pytorch):
    """Every size up to 1333 at the strides 16 and 32, where rounding of the ratio decides."""
    sizes = [(1, size, 1, -(-size // stride)) for stride in (16, 32) for size in range(stride, 1334, 7)]
    for (_, size, _, cells), expected in zip(sizes, pytorch.call("layers:nearest", sizes), strict=True):
        row = np.arange(size, dtype=np.float32).reshape(1, 1, size)
        np.testing.assert_array_equal(resize_nearest(row, 1, cells), expected)


@pytest.mark.parametrize("d_model", [8, 12])
def test_sine_embedding_is_the_papers_formula(d_model):
    mask = np.ones((2, 4, 6), np.int32)
    mask[1, 3:] = mask[1, :, 4:] = 0
    got = SinePositionEmbedding(d_model)(mask).numpy()
    half = d_model // 2
    for image, (height, width) in enumerate([(4, 6), (3, 4)]):
        for y in range(height):
            for x in range(width):
                expected = []
                for position, extent in ((y + 1, height), (x + 1, width)):
                    angle = 2 * math.pi * position / extent
                    for channel in range(half):
                        scaled = angle / 10000 ** (2 * (channel // 2) / half)
                        expected.append(math.cos(scaled) if channel % 2 else math.sin(scaled))
                np.testing.assert_allclose(got[image, y, x], expected, rtol=0, atol=1e-5)


def test_sine_embedding_is_computed_in_float32_under_a_mixed_policy():
    mask = np.ones((1, 40, 40), np.int32)
    low = SinePositionEmbedding(32, dtype="mixed_bfloat16")(mask)
    assert low.dtype == "bfloat16"
    # Off by the rounding of the result alone: half a unit in the last of eight places.
    np.testing.assert_allclose(low.numpy().astype(np.float32), SinePositionEmbedding(32)(mask), rtol=2**-8, atol=1e-6)


def test_learned_embedding_is_column_then_row():
    layer = LearnedPositionEmbedding(6)
    got = layer(np.ones((2, 3, 50), np.int32)).numpy()
    assert got.shape == (2, 3, 50, 6)
    for y, x in ((0, 0), (2, 1), (1, 49)):
        np.testing.assert_array_equal(got[1, y, x], np.concatenate([layer.column[x], layer.row[y]]))


@pytest.mark.parametrize("shape", [(1, 51, 3), (1, 3, 51)])
def test_learned_embedding_ends_at_fifty(shape):
    message = f"know 50 × 50 positions, but the feature map has {shape[1]} × {shape[2]}: use smaller images or sine"
    with pytest.raises(ValueError, match=message):
        LearnedPositionEmbedding(8)(np.ones(shape, np.int32))
