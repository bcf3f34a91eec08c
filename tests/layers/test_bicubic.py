"""Bicubic resizing beside PyTorch's, in both of its forms, of sizes that are known and of sizes that are not.

Measured on a CPU: values of N(0, 1) differ by at most 4e-6, the last digits of where a pixel lies.
"""

import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras.layers.bicubic import resize_bicubic

SIZES = [
    *(((37, 37), (40, 40)), ((37, 37), (24, 24)), ((14, 14), (40, 40)), ((14, 14), (80, 80))),
    *(((5, 7), (11, 3)), ((24, 24), (53, 18)), ((6, 6), (6, 6)), ((9, 4), (1, 1)), ((1, 1), (3, 2))),
]
LIMIT = 2e-5


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
def test_values_are_pytorchs(before, after, antialias, pytorch):
    x = np.random.default_rng(0).standard_normal((*before, 3)).astype("float32")
    expected = pytorch.call("layers:bicubic", x, after, antialias)
    found = resize_bicubic(x, *after, antialias)
    np.testing.assert_allclose(found, expected, rtol=0, atol=LIMIT)

    @tf.function(input_signature=[tf.TensorSpec((), tf.int32), tf.TensorSpec((), tf.int32)])
    def of_any_size(height, width):
        return resize_bicubic(x, height, width, antialias)

    np.testing.assert_allclose(of_any_size(*after), expected, rtol=0, atol=LIMIT)


def test_the_two_forms_are_not_one(pytorch):
    """Also where an image becomes larger, and nothing is smoothed: their kernels differ."""
    x = np.random.default_rng(0).standard_normal((14, 14, 3)).astype("float32")
    one, other = (np.asarray(resize_bicubic(x, 40, 40, antialias)) for antialias in (True, False))
    assert np.abs(one - other).max() > 0.1
