"""Checkpoints with objects beside the weights: these are left out and named, and never built."""

import argparse
import collections
import datetime
import enum
import functools
import pathlib
import pickle
import types

import numpy as np
import pytest
from torch_parts import VALUES, legacy_file, refusal, state, tensor, text, zip_file

from resnet_jax.weights.state_dict import listed
from resnet_jax.weights.tensors import read_tensor_file


class Colour(enum.Enum):
    """A value of its class by a call."""

    RED = 1


class Record(dict):
    """A dict with attributes, as many libraries keep their options."""


def pickled(value):
    """The opcodes of a value, without begin and end."""
    return pickle.dumps(value, 2)[2:-1]


BESIDE = {
    "args": (argparse.Namespace(model="resnet50", lr=0.1, amp=None), "'argparse.Namespace'"),
    "complex": (1 + 2j, "'__builtin__.complex'"),
    "tuple key": ({(1, "a"): 2, None: 3, 0.5: 4, True: 5}, "a dict key that is neither a name nor a number"),
    "defaultdict": (collections.defaultdict(list, {"a": [1]}), "'collections.defaultdict'"),
    "deque": (collections.deque([1, 2]), "'collections.deque'"),
    "datetime": (datetime.datetime(2026, 11, 28), "'datetime.datetime'"),
    "path": ([pathlib.PurePosixPath("runs")], "'pathlib.PurePosixPath'"),
    "frozenset": (frozenset({1, 2}), "'__builtin__.frozenset'"),
    "generator": ({"rng": np.random.default_rng(0)}, "'numpy.random._pickle.__generator_ctor'"),
    "state": (np.random.get_state(), "reconstruct'"),  # noqa: NPY002
    "partial": (functools.partial(print, 1), "'functools.partial'"),
    "function": (np.linalg.norm, "norm'"),
    "enum": (Colour.RED, "Colour'"),
    "record": (Record(a=1), "Record'"),
    "namespace": (types.SimpleNamespace(a=[1]), "'types.SimpleNamespace'"),
    "dtype": (np.float64(91.5), ""),
    "none": (None, ""),
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("file", [zip_file, legacy_file], ids=["zip", "legacy"])
def test_objects_beside_the_weights_are_left_out_and_named(tmp_path, file, kind):
    value, name = BESIDE[kind]
    whole = state(epoch=b"K\x03", other=pickled(value), state_dict=state(a=tensor()))
    found = read_tensor_file(file(tmp_path / "x.pth", whole))
    np.testing.assert_array_equal(found.tensors["a"], VALUES.reshape(2, 3))
    assert len(found.left_out) == bool(name)
    if name:
        assert found.left_out[0].startswith("'other' (")
        assert found.left_out[0].endswith(f"{name})")
        inside = state(state_dict=state(a=tensor(), other=pickled(value)))
        message = refusal(file(tmp_path / "x.pth", inside))
        assert f"{name}, which is not for tensors; nothing was run; ask for" in message


def test_a_key_that_is_no_name_stands_beside_the_weights(tmp_path):
    whole = b"}(" + pickled((1, 2)) + b"N" + text("model") + state(a=tensor()) + b"u"
    found = read_tensor_file(zip_file(tmp_path / "x.pth", whole))
    assert set(found.tensors) == {"a"}
    assert found.left_out == ("a dict key that is neither a name nor a number",)


def test_two_candidates_are_never_guessed_between(tmp_path):
    two = {"model": state(a=tensor()), "state_dict": state(b=tensor())}
    assert "has weights under 'model' and 'state_dict'; save a file with one" in refusal(
        zip_file(tmp_path / "x", state(**two))
    )
    averages = {"ema": state(a=tensor()), "teacher": state(b=tensor())}
    assert "has weights under 'ema' and 'teacher'" in refusal(zip_file(tmp_path / "x", state(**averages)))
    # What has no tensors is no candidate
    whole = state(model=state(name=text("resnet50")), params=text("x"), net=state(a=tensor()))
    assert set(read_tensor_file(zip_file(tmp_path / "x", whole)).tensors) == {"a"}


def test_what_else_has_tensors_is_said(tmp_path):
    whole = state(state_dict=state(a=tensor()), state_dict_ema=state(a=tensor()), optimizer=state(s=state(m=tensor())))
    found = read_tensor_file(zip_file(tmp_path / "x", whole))
    assert found.beside == ("state_dict_ema", "optimizer")
    assert found.left_out == ("averages under 'state_dict_ema'",)
    whole = state(student=state(a=tensor()), optimizer=state(m=tensor()))
    assert "no tensors in it, but under 'student' and 'optimizer'; name a" in refusal(zip_file(tmp_path / "x", whole))


def test_many_names_are_a_short_list():
    assert listed("a") == "a"
    assert listed("abcde") == "a, b, c, d and e"
    assert listed("abcdefgh") == "a, b, c, d and 4 more"
