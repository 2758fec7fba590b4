"""Errors are one line, whatever the names and values in them are."""

import pickle

import pytest

from resnet_jax.errors import InputError, MachineError, short_repr, unknown


@pytest.mark.parametrize("kind", [InputError, MachineError])
def test_an_error_is_one_line_of_bounded_length(kind):
    assert str(kind("two\nlines\r\nof a name")) == "two lines of a name"
    long = str(kind("x" * 100_000))
    assert len(long) == 4_000
    assert long.endswith("x ...")
    assert str(pickle.loads(pickle.dumps(kind("a  b")))) == "a  b"


def test_long_values_are_cut():
    assert short_repr("a") == "'a'"
    assert len(short_repr(["x"] * 1000)) == 100
    assert str(unknown("model", "y" * 1000, ["resnet20"])).endswith(" ...; known: resnet20")
