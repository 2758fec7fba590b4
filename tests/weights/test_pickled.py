"""Pickles of torch.save, and those that would do harm; nothing of them is run."""

import pickle
import time

import numpy as np
import pytest
from torch_parts import VALUES, legacy_file, name, number, refusal, row, state, storage, tensor, text, zip_file

from resnet_jax.weights.pickled import MAX_OPCODES
from resnet_jax.weights.tensors import read_tensors


@pytest.fixture(params=[zip_file, legacy_file], ids=["zip", "legacy"])
def write(request, tmp_path):
    """Writes a file of one of the two formats around a pickle."""
    return lambda value, *rest: request.param(tmp_path / "x.pth", value, *rest)


def test_tensors_are_read_only_views(write):
    parts = {
        "whole": tensor(),
        "turned": tensor(0, (3, 2), (1, 3)),
        "part": tensor(4, (2,), (1,)),
        "one": tensor(5, (), ()),
    }
    found = read_tensors(write(state(**parts, epoch=number(3), note=text("x"), empty=tensor(0, (0, 9), (9, 1)))))
    np.testing.assert_array_equal(found["whole"], VALUES.reshape(2, 3))
    np.testing.assert_array_equal(found["turned"], VALUES.reshape(2, 3).T)
    np.testing.assert_array_equal(found["part"], [4, 5])
    assert (found["one"].shape, found["one"].item(), found["empty"].shape) == ((), 5, (0, 9))
    assert set(found) == {*parts, "empty"}
    assert not any(value.flags.writeable or value.flags.owndata for value in found.values())


@pytest.mark.parametrize(
    "wrong",
    [
        tensor(1),
        tensor(-1, (2,), (1,)),
        tensor(6, (), ()),
        tensor(0, (7,), (1,)),
        tensor(0, (2,), (6,)),
        tensor(0, (2,), (-1,)),
        tensor(0, (-2,), (1,)),
        tensor(0, (2, 3), (1,)),
        tensor(5, (2,), (-1,)),
        tensor(0, (7,), (0,)),
        tensor(0, (2**40, 2**40), (0, 0)),
        tensor(0, (2**31, 2**33, 2**64), (0, 0, 0)),
        tensor(0, (2,), (2**63,)),
        tensor(2**64, (2,), (1,)),
        tensor(0, (0, 2**62), (1, 1)),
        tensor(0, (0, 2**200), (1, 1)),
        tensor(0, (1,) * 65, (1,) * 65),
    ],
)
def test_tensors_that_leave_their_storage_are_refused(write, wrong):
    assert "tensor 'wrong': it" in refusal(write(state(right=tensor(), wrong=wrong)))


def test_strides_that_no_step_takes_do_not_matter(write):
    assert read_tensors(write(state(a=tensor(0, (1, 6), (2**70, 1)))))["a"].shape == (1, 6)


LIVE = "touched"  # what the payloads below would write


def payloads(path):
    """Pickles that write a file when they are unpickled, or would with the right classes."""
    shell, code = text(f"touch {path}"), text(f"open({str(path)!r}, 'w').close()")
    system, call = name("os.system"), row(text(f"touch {path}"))
    stacked = b"\x8c\x02os\x8c\x06system\x93"
    getter = name("builtins.getattr") + row(name("os.path"), text("os")) + b"R"
    ordered = name("collections.OrderedDict")
    return {
        "os.system": system + call + b"R",
        "posix.system": name("posix.system") + call + b"R",
        "os.system by STACK_GLOBAL": stacked + call + b"R",
        "builtins.eval": name("builtins.eval") + row(code) + b"R",
        "builtins.exec": name("builtins.exec") + row(code) + b"R",
        "__builtin__.eval": name("__builtin__.eval") + row(code) + b"R",
        "nested": name("builtins.getattr") + row(getter, text("system")) + b"R" + call + b"R",
        "in an allowed call": ordered + row(b"](" + b"](" + text("a") + system + call + b"Re" + b"e") + b"R",
        "in a state": ordered + b")R}" + text("_metadata") + system + call + b"Rsb",
        "in a tensor": name("torch._utils._rebuild_parameter") + row(system + call + b"R") + b"R",
        "functools.partial": name("functools.partial") + row(system, shell) + b"R)R",
        "INST": b"(" + shell + b"ios\nsystem\n",
        "OBJ": b"(" + system + shell + b"o",
        "NEWOBJ": name("subprocess.Popen") + row(row(text("touch"), text(str(path)))) + b"\x81",
        "NEWOBJ of an allowed name": ordered + b")\x81",
        "NEWOBJ_EX": name("subprocess.Popen") + row(row(text("touch"), text(str(path)))) + b"}\x92",
        "call of a storage": name("torch.FloatStorage") + row(number(1 << 50)) + b"R",
        "call of a call": ordered + b")R)R",
        "tensor of no storage": name("torch._utils._rebuild_tensor_v2") + row(b"N", number(0), b"))") + b"R",
        "parameter of no tensor": name("torch._utils._rebuild_parameter") + row(b"}") + b"R",
        "state of a name": ordered + b"}" + text("__setstate__") + system + b"sb",
        "state of an allowed name": ordered + b"}b",
        "state of a tensor": tensor() + b"}b",
        "state of a dict": b"}}b",
        "torch.load": name("torch.load") + row(text(str(path))) + b"R",
        "torch.storage._load_from_bytes": name("torch.storage._load_from_bytes") + row(shell) + b"R",
        "torch.hub.load": name("torch.hub.load") + row(shell) + b"R",
        "numpy.load": name("numpy.load") + row(shell) + b"R",
        "dotted": name("collections.OrderedDict.__reduce__") + b")R",
        "within torch._utils": name("torch._utils.os.system") + call + b"R",
        "EXT1": b"\x82\x01",
        "EXT2": b"\x83\x01\x00",
        "EXT4": b"\x84\x01\x00\x00\x00",
        "persistent id": shell + b"Q",
        "persistent tuple": row(text("module"), system, shell) + b"Q",
        "persistent id of protocol 0": b"Pstorage\n",
        "storage of a kind of its own": storage(kind="collections.OrderedDict"),
        "storage of less than nothing": storage(numel=-1),
        "storage of storages": storage(more=row(text("1"), number(0), number(1))),
        "key of a tensor": b"}" + tensor() + b"Ns",
    }


@pytest.mark.parametrize("kind", payloads(LIVE))
def test_nothing_is_ever_run(write, tmp_path, kind):
    payload = payloads(tmp_path / LIVE)[kind]
    for value in (payload, state(a=tensor(), b=payload)):
        message = refusal(write(value))
        assert "which is not for tensors; nothing was run; ask for" in message
        if "." in kind and "system" in kind:
            assert ".system'" in message
    assert not (tmp_path / LIVE).exists()


def test_the_payloads_are_live(tmp_path):
    for kind in ("os.system", "posix.system", "os.system by STACK_GLOBAL", "builtins.eval", "builtins.exec", "INST"):
        pickle.loads(b"\x80\x04" + payloads(tmp_path / LIVE)[kind] + b".")
        (tmp_path / LIVE).unlink()


OTHER_OPCODES = {
    **{"INT": b"I1\n", "LONG": b"L1L\n", "LONG4": b"\x8b\1\0\0\0\1", "FLOAT": b"F1\n", "STRING": b"S'a'\n"},
    **{"UNICODE": b"Va\n", "NEXT_BUFFER": b"\x97", "READONLY_BUFFER": b"N\x98"},
    **{"LIST": b"(l", "DICT": b"(d", "POP": b"N0", "POP_MARK": b"(1", "DUP": b"N2"},
    **{"GET": b"g0\n", "PUT": b"Np0\n"},
}


@pytest.mark.parametrize("opcode", OTHER_OPCODES)
def test_opcodes_that_torch_does_not_write_are_refused(write, opcode):
    assert f"uses the pickle opcode {opcode}, which is not for tensors" in refusal(write(OTHER_OPCODES[opcode]))


# A list (h1) of 300,000 times one pair, and a tuple (h2) of it as often.
LONG = b"](" + text("a") + b"Neq\x00" + b"](" + b"h\x00" * 300_000 + b"eq\x01" + b"(" + b"h\x00" * 300_000 + b"tq\x02"
BOMBS = {
    "deep": b")" + b"\x85" * 100_000,
    "hash": b")q\x00" + b"h\x00h\x00\x86q\x00" * 200 + b"}h\x00Ns",  # of a key, in 2 ** 200 steps
    "steps": b"](" + b"N" * MAX_OPCODES + b"e",
    "marks": b"(" * 100_000,
    "lists": b"]" * 100_000 + b"a" * 99_999,
    "bytes": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "number": b"\x8b\xff\xff\xff\x7f",
    "collisions": b"}"
    + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"Ns" for i in range(20_000)),
    "calls": LONG + name("collections.OrderedDict") + b"q\x03](" + b"h\x03h\x01\x85R" * 100_000 + b"e",
    "references": LONG + b"(" + b"h\x02Q" * 100_000 + b"t",
    "shapes": LONG + state(a=name("torch._utils._rebuild_tensor") + row(storage(), number(0), b"h\x02h\x02") + b"R"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_do_not_go_off(write, bomb):
    start = time.monotonic()
    refusal(write(BOMBS[bomb]))
    assert time.monotonic() - start < 10


def test_damaged_pickles_are_refused(write):
    for value in (
        b"",
        b"0",
        b"a",
        b"s",
        b"u",
        b"t",
        b"R",
        b"b",
        b"Q",
        b"q\x00",
        b"h\x07",
        b"\x93",
        b"NN",
        b"(N",
        b"}(Nu",
    ):
        refusal(write(value))
    assert "described in two ways" in refusal(write(state(a=tensor(), b=tensor(where=storage(numel=5)))))


def test_python_two_pickles_are_read(write):
    pair = b"](" + b"U\x01a" + tensor() + b"e"
    found = read_tensors(write(name("collections.OrderedDict") + row(b"](" + pair + b"e") + b"R"))
    np.testing.assert_array_equal(found["a"], VALUES.reshape(2, 3))
