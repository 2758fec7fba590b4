"""Mean and standard deviation, as they are computed and as they are written."""

import numpy as np
import pytest

from resnet_jax.spread import spread


def test_of_a_sample():
    values = [0.91, 0.93, 0.9, 0.955]
    mean, std, kept = spread(values)
    assert (mean, std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert kept == tuple(values)
    assert spread(values, 0.01).std == pytest.approx(100 * np.std(values, ddof=1))
    assert spread(values).written(2) == "0.92 ± 0.02"
    assert spread(values, 0.01).written(1, " %") == "92.4 % ± 2.4"


def test_one_number_has_no_deviation():
    assert spread(np.array([0.5])) == (0.5, None, (0.5,))
    assert spread([1234.5]).written(1) == "1,234.5"
