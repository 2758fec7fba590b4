"""Readers of what anybody may have written answer with a value or one line, in 5 seconds and 1 GB, whatever it is."""

import os
import time
from pathlib import Path
from random import Random

import pytest
from targets import TARGETS

# The slow test tries this multiple of the quick one's cases, up to a limit
MULTIPLE, MOST = 15, 3_000
# To look further: other cases than those that the tests always try
FIRST = int(os.environ.get("RESNET_JAX_FUZZ_FROM", "0"))
STATUS = Path("/proc/self/status")


def most_memory() -> int:
    """Return the largest size of this process since `forget_memory`, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def forget_memory() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return most_memory()


@pytest.fixture(params=TARGETS)
def target(request, tmp_path):
    (tmp_path / "files").mkdir()
    TARGETS[request.param].make(tmp_path / "files")
    return request.param


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_whatever_is_read_is_a_value_or_one_line(target, slow, tmp_path):
    _, read, change, quick, refusals = TARGETS[target]
    files = {path: path.read_bytes() for path in sorted((tmp_path / "files").rglob("*")) if path.is_file()}
    for path in files:
        read(path)
    refused, cases = 0, min(MULTIPLE * quick, MOST) if slow else quick
    for number in range(FIRST, FIRST + cases):
        draw = Random(f"{target} {number}")
        path = draw.choice(list(files))
        path.write_bytes(change(draw, files[path]))
        before, start = forget_memory() if STATUS.is_file() else 0, time.process_time()
        try:
            read(path)
            said = "a value"
        except refusals as error:
            refused, said = refused + 1, str(error)
        except BaseException as error:
            error.add_note(f"case {number} of {target!r}: {path.name}")
            raise
        assert 0 < len(said) <= 4_000, f"case {number}"
        assert "\n" not in said, f"case {number}"
        assert time.process_time() - start < 5, f"case {number}"
        assert not STATUS.is_file() or most_memory() - before < 1 << 30, f"case {number}"
        path.write_bytes(files[path])
    assert 0 < refused < cases
