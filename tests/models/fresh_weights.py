"""How a fresh model starts, beside the recorded start of its authors' code."""

import numpy as np
import pytest


def assert_starts_alike(ours, theirs, least, pretrained=("backbone",)):
    """What is constant there is the same here, and what is drawn has the same spread and the same limits.

    Args:
        ours: arrays by the authors' names.
        theirs: of each of these, its mean, standard deviation and largest absolute value.
        least: values from which on an array's mean and deviation are compared, too.
        pretrained: what the names begin with of what is not looked at, since they have it from a file.
    """
    for name, (mean, deviation, largest) in theirs.items():
        if name.startswith(pretrained):
            continue
        values = ours[name].astype(np.float64)
        if deviation < 1e-9 or "sampling_offsets.bias" in name:
            assert (values.mean(), values.std()) == pytest.approx((mean, deviation), abs=1e-6), name
            assert np.abs(values).max() == pytest.approx(largest, abs=1e-6), name
        elif values.size >= least:
            error = 5 * deviation / np.sqrt(values.size)
            assert values.mean() == pytest.approx(mean, abs=2 * error), name
            assert values.std() == pytest.approx(deviation, abs=error), name
            is_normal = largest > 2 * deviation  # of uniform ones the largest is 1.7 deviations
            assert np.abs(values).max() == pytest.approx(largest, rel=0.4 if is_normal else 0.05), name
        else:
            assert np.abs(values).max() <= 1.5 * largest, name
            assert values.std() > 0.3 * deviation, name
