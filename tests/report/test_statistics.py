"""Mean and standard deviation, as they are computed and as they are formatted."""

import numpy as np
import pytest

from resnet_jax.report.statistics import mean_and_std


def test_of_a_sample():
    values = [0.91, 0.93, 0.9, 0.955]
    mean, std, kept = mean_and_std(values)
    assert (mean, std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert kept == tuple(values)
    assert mean_and_std(values, 0.01).std == pytest.approx(100 * np.std(values, ddof=1))
    assert mean_and_std(values).format(2) == "0.92 ± 0.02"
    assert mean_and_std(values, 0.01).format(1, " %") == "92.4 % ± 2.4"


def test_one_number_has_no_deviation():
    assert mean_and_std(np.array([0.5])) == (0.5, None, (0.5,))
    assert mean_and_std([1234.5]).format(1) == "1,234.5"
