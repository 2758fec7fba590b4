"""Shards: records there and back, threads and processes, and every kind of damage."""

import json
import pickle
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax.data.datasets import found_in, open_split
from resnet_jax.data.formats import shards
from resnet_jax.data.formats.array_record import array_record
from resnet_jax.data.formats.shards import MANIFEST, UNFINISHED, pack, read_index, unpack, write_index, write_records
from resnet_jax.data.image import Preprocessing
from resnet_jax.data.prepare import Packing, prepare_data
from resnet_jax.data.selection import Selection
from resnet_jax.data.source import MissingSplitError, RawExample, to_arrays
from resnet_jax.errors import InputError, MachineError
from resnet_jax.input_pipeline.host_input import reader, skip_corrupt


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits in two shards a split."""
    out = tmp_path_factory.mktemp("packed") / "digits"
    prepare_data("digits", out, Packing(shards=2))
    return out


@pytest.fixture
def mine(digits, tmp_path):
    """A copy to be damaged."""
    home = tmp_path / "digits"
    home.mkdir()
    for path in digits.iterdir():
        (home / path.name).write_bytes(path.read_bytes())
    return home


@settings(max_examples=50, deadline=None)
@given(
    st.one_of(st.binary(), st.tuples(*[st.integers(1, 5)] * 3)), st.integers(0, 2**32 - 1), st.text(), st.integers(1, 4)
)
def test_records_there_and_back(content, label, name, channels):
    if isinstance(content, tuple):
        content = np.arange(np.prod(content)).astype(np.uint8).reshape(content)
        channels = content.shape[2]
    item = unpack(pack(RawExample(content, label, name, "", channels)), "here")
    assert (item.target, item.channels) == (label, channels)
    assert item.name == name.encode(errors="replace").decode()
    np.testing.assert_array_equal(item.content, content)


def test_the_format_of_a_record_is_what_it_was():
    pixels = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    header = struct.pack("<HHIHHHH", 1, 1, 7, 2, 1, 2, 3)
    assert pack(RawExample(pixels, 7, "ab", "", 3)) == header + b"ab" + bytes(range(6))
    assert pack(RawExample(b"jpeg", 7, "", "", 1)) == struct.pack("<HHIHHHH", 1, 0, 7, 0, 0, 0, 1) + b"jpeg"


def test_shards_packed_again_are_not_those_that_were_opened(mine):
    """And no other example takes their place, as that of an image that cannot be read would be taken."""
    source = array_record("train", Path(), str(mine))
    first, second = (source.read(index).image.tobytes() for index in (0, 1000))
    index = (mine / "dataset.json").read_text()
    (mine / "dataset.json").write_text(index.replace(json.loads(index)["splits"]["train"]["shards"][1]["sha256"], "0"))
    # Those that are open are still the old files
    assert source.read(1000).image.tobytes() == second
    shards.close_readers()
    assert source.read(0).image.tobytes() == first
    read = skip_corrupt(reader(source, None), source.size, replaced := {})
    for damaged in (False, True):
        if damaged:
            (mine / "dataset.json").write_text("{}")
        with pytest.raises(InputError, match=r"train-00001-of-00002.array_record: packed again since"):
            read(1000, 0)
        shards.close_readers()
    assert not replaced


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"", "here is not a record of this format"),
        (struct.pack("<HHIHHHH", 2, 0, 7, 0, 0, 0, 1), "here is of version 2, kind 0, expected version 1"),
        (struct.pack("<HHIHHHH", 1, 9, 7, 0, 0, 0, 1), "here is of version 1, kind 9, expected version 1"),
        (struct.pack("<HHIHHHH", 1, 1, 7, 1, 2, 2, 1) + b"abcd", r"here \(a\) has 3 bytes for 2 x 2 x 1 pixels"),
    ],
)
def test_other_records_are_refused(record, message):
    with pytest.raises(InputError, match=message):
        unpack(record, "here")


def test_what_is_packed_is_read_again(digits):
    for split in ("train", "test"):
        source, plain = (open_split(name, split, Path()) for name in (f"array_record:{digits}", "digits"))
        assert (source.size, source.classes) == (plain.size, plain.classes)
        for got, expected in zip(to_arrays(source), to_arrays(plain), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert open_split(
        f"array_record:{digits}", "train", Path(), preprocessing=Preprocessing(image_size=6, crop_pct=0.9)
    ).read(1436).image.shape == (6, 6, 1)


def test_the_data_folder_and_the_working_directory(digits, monkeypatch):
    monkeypatch.chdir(digits.parent)
    assert found_in("array_record:digits", Path("data")) == Path()
    source = pickle.dumps(open_split("array_record:digits", "train", Path("data")))
    monkeypatch.chdir("/")
    assert pickle.loads(source).size == 1437
    assert found_in("array_record:digits", digits.parent) == digits.parent
    assert open_split("array_record:digits", "test", digits.parent, Selection(100)).size == 360


def test_threads_and_other_processes(digits):
    source = array_record("train", Path(), str(digits))
    expected = [example.tobytes() for example in to_arrays(open_split("digits", "train", Path()))[0]]
    shards.close_readers()
    with ThreadPoolExecutor(16) as pool:
        order = np.random.default_rng(0).integers(0, source.size, 4000)
        assert all(pool.map(lambda index: source.read(int(index)).image.tobytes() == expected[index], order))
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read(1000).image.tobytes().hex())"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True, check=True)
    assert done.stdout.decode().strip() == expected[1000].hex()


def test_a_flipped_bit_is_never_taken_for_an_image(mine):
    path = mine / "train-00000-of-00002.array_record"
    content = path.read_bytes()
    source = array_record("train", Path(), str(mine))
    expected = [example.tobytes() for example in to_arrays(open_split("digits", "train", Path()))[0]]
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(content), 40):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        shards.close_readers()
        with ThreadPoolExecutor(4) as pool:
            for result, right in zip(
                pool.map(lambda index: attempt(source, index), range(718)), expected, strict=False
            ):
                assert result == right or result.startswith(f"{path}: ")
                refused += result != right
    assert refused > 10


def attempt(source, index):
    try:
        return source.read(index).image.tobytes()
    except InputError as error:
        return str(error)


def test_a_shard_of_another_length_or_gone_is_refused_at_once(mine):
    path = mine / "test-00001-of-00002.array_record"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{path.name}: {size - 1:,} bytes, expected {size:,}; repeat the same"):
        array_record("test", Path(), str(mine))
    path.unlink()
    with pytest.raises(InputError, match=rf"{path.name}: no such shard; repeat the same `resnet-jax prepare`"):
        array_record("test", Path(), str(mine))
    source = array_record("train", Path(), str(mine))
    for path in mine.glob("train*"):
        path.unlink()
    shards.close_readers()
    with pytest.raises(InputError, match="no such shard"):
        source.read(0)


def test_a_shard_of_other_records_is_refused(mine):
    source = array_record("train", Path(), str(mine))
    first, second = sorted(mine.glob("train*"))
    write_records(first, [b"what is this"] * 718)
    shards.close_readers()
    with pytest.raises(InputError, match=rf"{first.name}: record 0 is not a record of this format"):
        source.read(0)
    write_records(second, [])
    with pytest.raises(InputError, match=rf"{second.name}: damaged, 0 records instead of 719"):
        source.read(1000)
    first.write_bytes(bytes(first.stat().st_size))
    shards.close_readers()
    with pytest.raises(InputError, match=rf"{first.name}: "):
        source.read(0)


@pytest.mark.parametrize(
    "about", [{"sha256": ["x"]}, {"file": ""}, {"file": ".."}, {"file": "x" * 300}, {"bytes": True}]
)
def test_an_index_of_other_types_is_refused(mine, about):
    values = json.loads((mine / MANIFEST).read_text())
    values["splits"]["train"]["shards"][0].update(about)
    (mine / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"dataset\.json: damaged \(shard "):
        array_record("train", Path(), str(mine))


def test_without_its_list_a_folder_is_no_data_set(mine):
    (mine / MANIFEST).rename(mine / UNFINISHED)
    with pytest.raises(InputError, match="digits: packing is not finished; repeat the same `resnet-jax prepare`"):
        array_record("train", Path(), str(mine))
    (mine / UNFINISHED).unlink()
    with pytest.raises(InputError, match=r"digits: no dataset.json in this folder; `resnet-jax prepare SOURCE digits`"):
        array_record("train", Path(), str(mine))
    with pytest.raises(InputError, match=r"gone: no such folder; `resnet-jax prepare SOURCE gone`"):
        array_record("train", Path(), str(mine / "gone"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, r"dataset.json: not what `resnet-jax prepare` writes \(format 'another'\)"),
        ({"version": 2}, "dataset.json: version 2, this release reads version 1; remove its folder, and pack"),
        ({"splits": {"train": {}}}, r"dataset.json: damaged \('shards'\)"),
        ({"splits": []}, "dataset.json: damaged"),
        ({"splits": {"train": {"shards": []}}}, "no train split here"),
        ({"classes": ["0", "1"]}, r"train-00000-of-00002.array_record: label 9, expected 0 to 1"),
    ],
)
def test_a_list_that_is_wrong(mine, change, message):
    path = mine / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        array_record("train", Path(), str(mine))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 1}', "\x00"])
def test_a_list_that_is_none(mine, text):
    (mine / MANIFEST).write_text(text)
    with pytest.raises(InputError, match="dataset.json: not what `resnet-jax prepare` writes"):
        array_record("train", Path(), str(mine))


@pytest.mark.parametrize(
    "change", [{"file": "../train"}, {"examples": "718"}, {"more": 1}, {"skipped": 3}, {"last_label": None}]
)
def test_a_shard_that_is_described_wrongly(mine, change):
    values = json.loads((mine / MANIFEST).read_text())
    values["splits"]["train"]["shards"][0] |= change
    (mine / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"dataset.json: damaged \("):
        array_record("train", Path(), str(mine))


def test_lists_there_and_back(mine):
    manifest = read_index(mine / MANIFEST)
    write_index(mine / "again.json", manifest)
    assert (mine / "again.json").read_text() == (mine / MANIFEST).read_text()


def test_a_split_that_is_not_there(mine):
    manifest = read_index(mine / MANIFEST)
    write_index(mine / MANIFEST, manifest._replace(splits={"train": manifest.splits["train"]}))
    with pytest.raises(MissingSplitError, match="no test split here, only train; hold training images out"):
        array_record("test", Path(), str(mine))


def test_records_that_cannot_be_written_leave_nothing(tmp_path):
    def failing():
        yield b"one"
        raise KeyError("of the caller")

    with pytest.raises(KeyError):
        write_records(tmp_path / "a", failing())
    with pytest.raises(MachineError, match="gone/a: cannot be written"):
        write_records(tmp_path / "gone" / "a", [b"one"])
    assert not list(tmp_path.iterdir())
