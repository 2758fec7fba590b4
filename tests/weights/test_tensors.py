"""Safetensors files, good and bad, and what is no weights file at all."""

import json
import os
import resource
import stat
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from resnet_jax.errors import InputError
from resnet_jax.weights.tensors import MAX_HEADER, read_tensors, write_tensors

DTYPES = (
    *(np.float64, np.float32, np.float16, ml_dtypes.bfloat16),
    *(np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_),
)
SMALL = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.c": np.array(7, np.int64),
    "e": np.zeros((0, 3), np.int8),
}


def entry(begin, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def raw(tmp_path, header, body=b"", name="x.safetensors"):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / name
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        np.testing.assert_array_equal(found[name], value)
        assert not found[name].flags.writeable


def assert_refused(path):
    with pytest.raises(InputError) as refusal:
        read_tensors(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_of_every_dtype(tmp_path, dtype):
    tensors = {
        "x": np.array([[0, 1, 1], [1, 0, 1]], dtype),
        "scalar": np.array(1, dtype),
        "empty": np.zeros((0,), dtype),
    }
    write_tensors(tmp_path / "x", tensors, {"model": "resnet20"})
    assert_same(read_tensors(tmp_path / "x"), tensors)
    save_file(tensors, tmp_path / "library")
    assert_same(read_tensors(tmp_path / "library"), tensors)


def test_the_library_reads_what_is_written(tmp_path):
    path = tmp_path / "x.safetensors"
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    swapped = np.arange(3, dtype=">f4")
    write_tensors(path, {"turned": turned, "swapped": swapped, "scalar": np.float32(3)})
    found = load_file(path)
    np.testing.assert_array_equal(found["turned"], turned)
    np.testing.assert_array_equal(found["swapped"], [0, 1, 2])
    assert found["scalar"].shape == ()


def test_nothing_is_left_of_a_failed_write(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, SMALL)
    for bad in (np.zeros(2, np.complex128), np.array(["text"])):
        with pytest.raises(InputError, match=r"x\.safetensors: tensor 'bad' of dtype"):
            write_tensors(path, {"bad": bad})
    with pytest.raises(InputError, match="cannot be written"):
        write_tensors(tmp_path / "gone" / "x", SMALL)
    with pytest.raises(InputError, match="cannot be written"):
        write_tensors(path / "x", SMALL)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: cannot be written"):
        write_tensors(tmp_path / "folder", SMALL)
    assert sorted(os.listdir(tmp_path)) == ["folder", "x.safetensors"]
    assert_same(read_tensors(path), SMALL)


def test_a_file_may_be_replaced_while_it_is_mapped(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, SMALL)
    found = read_tensors(path)
    write_tensors(path, {"a": found["a"]})
    write_tensors(path, {"z": np.zeros(1000)})
    assert_same(found, SMALL)
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_an_aligned_body_is_not_asked_for(tmp_path):
    values = np.arange(4, dtype=np.float32)
    header = json.dumps({"x": entry(1, 17, (4,)), "first": entry(0, 1, (1,), "U8")}).encode()
    path = raw(tmp_path, header + b" " * (8 - len(header) % 8), b"\x05" + values.tobytes())
    assert_same(read_tensors(path), {"first": np.array([5], np.uint8), "x": values})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello", "neither a safetensors nor a PyTorch file"),
        (b"<!DOCTYPE html><html>404</html>", "neither a safetensors nor a PyTorch file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 90, "neither a safetensors nor a PyTorch file"),
    ],
)
def test_what_is_no_weights_file_is_named(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert message in assert_refused(path)


def test_what_is_no_file_is_named(tmp_path):
    assert "no such file" in assert_refused(tmp_path / "gone.safetensors")
    assert "a folder" in assert_refused(tmp_path)
    assert "cannot be read" in assert_refused(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe")
    assert "no such file" in assert_refused(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ({"a": entry(0, 4)}, b"123", "cut short in tensor 'a'"),
        ({"a": entry(0, 4)}, b"12345", "1 bytes after the last tensor"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, b"1" * 12, "'b' leaves a hole"),
        ({"a": entry(4, 8)}, b"1" * 8, "'a' leaves a hole"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, b"1234", "'b' overlaps"),
        ({"a": entry(0, 8, (2,)), "b": entry(4, 12, (2,))}, b"1" * 12, "'b' overlaps"),
        ({"a": entry(0, 8)}, b"1" * 8, "'a': 8 bytes, but"),
        ({"a": entry(4, 0)}, b"1234", "'a': -4 bytes, but"),
        ({"a": entry(0, 4, (-1,))}, b"1234", "'a': its shape or offsets are negative"),
        ({"a": entry(0, 4, (1.0,))}, b"1234", "'a': its shape or offsets are negative"),
        ({"a": entry(0, 4, (True,))}, b"1234", "'a': its shape or offsets are negative"),
        ({"a": entry(0, 4, (2**32, 2**32))}, b"1234", "'a': 4 bytes, but"),
        ({"a": entry(0, 0, (2**62, 4))}, b"", "'a': its shape or offsets are negative, too large"),
        ({"a": entry(0, 0, (0, 2**40, 2**40))}, b"", "'a': 0 bytes, but"),
        ({"a": entry(0, 4, (1,) * 65)}, b"1234", "'a': its shape or offsets are no lists"),
        ({"a": entry(0, 4, (1,), "F8_E4M3")}, b"1234", "'a': dtype 'F8_E4M3' is not read"),
        ({"a": entry(0, 4, (1,), ["F32"])}, b"1234", "'a': dtype"),
        ({"a": {**entry(0, 4), "more": 1}}, b"1234", "'a': its header is not"),
        ({"a": 5}, b"1234", "'a': its header is not"),
        ({"line\nbreak": 5}, b"1234", r"'line\nbreak': its header is not"),
        ({"__metadata__": {"a": 1}}, b"", "metadata is no table of strings"),
        ({"__metadata__": {"a": "b"}}, b"", "no tensors in it"),
        ({}, b"", "no tensors in it"),
        (b'{"a": 1, "a": 1}', b"", "'a' occurs twice"),
        (b'{"a": NaN}', b"", "NaN is not JSON"),
        (b'{"\\ud800": 1}', b"", "header is damaged"),
        (b'{"\xff": 1}', b"", "header is damaged"),
        (b'{"a":' + b"[" * 100_000, b"", "header is damaged"),
        (b'{"a":' + b"9" * 100_000, b"", "header is damaged"),
        (b"{", b"", "header is damaged"),
    ],
)
def test_bad_headers_are_named(tmp_path, header, body, message):
    assert message in assert_refused(raw(tmp_path, header, body))


def test_huge_headers_are_refused_before_they_are_parsed(tmp_path):
    million = b'{"' + b'":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"'.join(b"%06d" % i for i in range(250_000))
    many = raw(tmp_path, million[: MAX_HEADER - 1] + b"}", b"1234")
    large = raw(tmp_path, b"{" + b" " * MAX_HEADER, name="large")
    start = time.monotonic()
    assert "over 100,000 tensors" in assert_refused(many)
    assert "a header of 16,777,217 bytes" in assert_refused(large)
    assert time.monotonic() - start < 0.5
    large.write_bytes(b"\xff" * 8 + b"{")
    assert "a header of 18,446,744,073,709,551,615 bytes" in assert_refused(large)


def test_every_cut_of_a_file_is_refused(tmp_path):
    write_tensors(tmp_path / "whole", SMALL, {"a": "b"})
    content = (tmp_path / "whole").read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:length])
        assert_refused(tmp_path / "cut")


def test_changed_bytes_give_tensors_or_a_refusal(tmp_path):
    write_tensors(tmp_path / "whole", SMALL, {"a": "b"})
    content = np.frombuffer((tmp_path / "whole").read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for number in range(2000):
        changed = content.copy()
        changed[rng.integers(0, len(content), 1 + number % 3)] = rng.integers(0, 256)
        (tmp_path / "changed").write_bytes(changed)
        try:
            found = read_tensors(tmp_path / "changed")
        except InputError:
            continue
        assert sum(value.nbytes for value in found.values()) < len(content)


@given(st.binary(max_size=100), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."]))
def test_any_bytes_are_refused(tmp_path_factory, content, start):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(start + content)
    assert_refused(path)


def resident():
    """The memory that this process takes, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="only Linux says how much memory is taken")
def test_files_are_mapped_and_not_copied(tmp_path):
    path = tmp_path / "large"
    write_tensors(path, {"x": np.zeros((16, 1024, 1024), np.float32), "y": np.zeros(5, np.float32)})
    before = resident()
    found = read_tensors(path)
    assert found["x"].nbytes == 1 << 26
    assert resident() - before < 1 << 24
