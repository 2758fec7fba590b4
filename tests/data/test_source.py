"""Sources: parts of them, and which of their examples cannot be read."""

import numpy as np
import pytest

from resnet_jax.data.image import Preprocessing
from resnet_jax.data.source import Example, RawExample, Source, all_named, from_raw, require_readable, subset
from resnet_jax.errors import InputError


def with_bad(*bad, size=60):
    def read(index):
        if index in bad:
            raise InputError(f"{index}.jpg: damaged")
        return Example(np.zeros((2, 2, 1), np.uint8), 0)

    return Source(size, ("a",), read)


def test_all_that_cannot_be_read_are_named_in_order():
    require_readable(with_bad())
    with pytest.raises(InputError) as error:
        require_readable(with_bad(7, 3, 59))
    assert str(error.value) == "3.jpg: damaged; 7.jpg: damaged; 59.jpg: damaged"
    with pytest.raises(InputError, match=r"^0\.jpg: .*; 9\.jpg: damaged; and 50 more$"):
        require_readable(with_bad(*range(60)))


def test_other_errors_stay_what_they_are():
    with pytest.raises(InputError, match=r"^3\.jpg: damaged; 7\.jpg: damaged$"), all_named(with_bad(3, 7)):
        raise InputError("7.jpg: damaged")
    with pytest.raises(InputError, match="two sizes"), all_named(with_bad()):
        raise InputError("two sizes")


def test_a_part_of_a_source_has_its_originals():
    def raw(index):
        return RawExample(np.full((2, 2, 1), index, np.uint8), 0, f"{index}", f"{index}.png")

    part = subset(from_raw(9, ("a",), raw, Preprocessing()), np.array([8, 2]))
    assert [part.raw(index).name for index in range(part.size)] == ["8", "2"]
    assert subset(with_bad(), np.array([1])).raw is None
