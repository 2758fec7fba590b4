"""What is around the pickles in files of torch.save: storages, zip archives, checkpoints."""

import pickle
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch_parts import VALUES, legacy_file, name, number, refusal, state, storage, tensor, text, zip_file

from resnet_jax.errors import InputError
from resnet_jax.weights.tensors import read_tensors


@pytest.fixture(params=[zip_file, legacy_file], ids=["zip", "legacy"])
def write(request, tmp_path):
    """Writes a file of one of the two formats around a pickle."""
    return lambda value, *rest: request.param(tmp_path / "x.pth", value, *rest)


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (["state_dict", "model_ema", "ema"], "state_dict"),
        (["model_ema", "model"], "model"),
        (["state_dict_ema", "state_dict"], "state_dict"),
        (["state_dict_ema", "optimizer"], "state_dict_ema"),
        (["net"], "net"),
        (["weights", "teacher"], "weights"),
        (["model_weights"], "model_weights"),
        (["teacher", "student"], "teacher"),
    ],
)
def test_the_weights_of_a_checkpoint_are_chosen_by_rule(write, keys, chosen):
    inside = {key: state(**{key: tensor(i, (), ())}) for i, key in enumerate(keys)}
    assert set(read_tensors(write(state(**inside, best=tensor())))) == {chosen}
    assert set(read_tensors(write(state(checkpoint=tensor(), model=state(state_dict=inside[chosen]))))) == {chosen}


def test_a_checkpoint_without_tensors_is_refused(write):
    for value in (state(), state(epoch=number(1)), b"]", b"N", state(other=state(a=tensor())), tensor()):
        assert "no tensors in it" in refusal(write(value, None if b"Q" in value else {}))
    inside_itself = b"}q\x00" + text("model") + b"h\x00s"
    assert "no tensors in it" in refusal(write(inside_itself, {}))
    assert "which is no name" in refusal(write(b"}" + number(1) + tensor() + b"s"))


def test_storages_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "x"
    assert "storage '0' is missing" in refusal(zip_file(path, state(a=tensor()), {}))
    for content in (b"", VALUES.tobytes()[:-1], VALUES.tobytes() + b"1234"):
        assert f"{len(content)} bytes, not 6 numbers" in refusal(zip_file(path, state(a=tensor()), {"0": content}))
    assert "does not fit" in refusal(legacy_file(path, state(a=tensor()), {}))
    assert "does not fit" in refusal(legacy_file(path, state(a=tensor()), {"1": VALUES.tobytes()}))
    assert "not of the size" in refusal(legacy_file(path, state(a=tensor()), {"0": VALUES.tobytes() + b"1234"}))
    assert "cut short" in refusal(legacy_file(path, state(a=tensor()), {"0": VALUES.tobytes()[:-4]}))
    assert "5 bytes after its end" in refusal(legacy_file(path, state(a=tensor()), tail=b"12345"))


def test_machines_of_the_other_byte_order_are_refused(tmp_path):
    assert "big-endian" in refusal(zip_file(tmp_path / "x", state(a=tensor()), more=[("byteorder", b"big")]))
    assert "big-endian" in refusal(legacy_file(tmp_path / "x", state(a=tensor()), little=False))
    assert read_tensors(zip_file(tmp_path / "x", state(a=tensor()), more=[("byteorder", b"little")]))


def test_other_zip_archives_are_refused(tmp_path):
    path = tmp_path / "x"
    for entry in ("constants.pkl", "code/model.py"):
        assert "TorchScript archive" in refusal(zip_file(path, state(a=tensor()), more=[(entry, b"")]))
    np.savez(tmp_path / "x.npz", a=VALUES)
    assert "not one of torch.save" in refusal(tmp_path / "x.npz")
    assert "compressed" in refusal(zip_file(path, state(a=tensor()), compression=zipfile.ZIP_DEFLATED))
    assert "not one of torch.save" in refusal(zip_file(path, state(a=tensor()), top="a/b"))
    assert read_tensors(zip_file(path, state(a=tensor()), top="resnet50-über"))
    zip_file(path, state(a=tensor()) + b".")
    assert "bytes after the end of its data.pkl" in refusal(path)


def test_entries_of_a_zip_archive_are_where_they_should_be(tmp_path):
    path = zip_file(tmp_path / "x", state(a=tensor()), {"0": VALUES.tobytes(), "1": VALUES.tobytes()})
    content = path.read_bytes()
    directory = content.index(b"PK\1\2")

    def patched(at, new, base=content):
        path.write_bytes(base[:at] + new + base[at + len(new) :])
        return refusal(path)

    second = content.index(b"PK\1\2", directory + 4)
    third = content.index(b"PK\1\2", second + 4)
    for offset in (0, 1, len(content), 2**32 - 2, content.index(b"PK\3\4", 4) + 4):
        assert "zip archive" in patched(third + 42, struct.pack("<I", offset))
    assert "two names" in patched(30, b"b")
    assert "overlap" in patched(28, struct.pack("<H", 10))
    assert "overlap" in patched(second + 20, struct.pack("<II", 200, 200))
    assert "compressed" in patched(second + 10, b"\x08")
    assert "compressed" in patched(second + 8, b"\x01")
    path.write_bytes(content + b"\0")
    assert "followed by other bytes" in refusal(path)
    path.write_bytes(content[:-22] + content[-22:-10] + struct.pack("<I", 1 << 30) + content[-6:])
    assert "directory of over" in refusal(path)


def test_two_entries_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        zip_file(tmp_path / "x", state(a=tensor()), more=[("data/0", VALUES.tobytes())])
    assert "have one name" in refusal(tmp_path / "x")


def test_a_pickle_that_torch_did_not_write_is_not_opened(tmp_path):
    (tmp_path / "x").write_bytes(pickle.dumps({"a": 1}))
    assert "neither a safetensors nor a PyTorch file" in refusal(tmp_path / "x")


def test_every_cut_of_a_file_is_refused(write, tmp_path):
    content = write(state(a=tensor(), b=tensor(3, (2,), (1,)))).read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:length])
        refusal(tmp_path / "cut")


@pytest.mark.parametrize("seed", range(2))
def test_changed_bytes_give_tensors_or_a_refusal(write, tmp_path, seed):
    beside = name("argparse.Namespace") + b")\x81}" + text("lr") + b"K\1sb"
    whole = state(args=beside, net=state(a=tensor(), b=tensor(3, (2,), (1,))))
    content = np.frombuffer(write(whole).read_bytes(), np.uint8)
    rng = np.random.default_rng(seed)
    for count in range(1200):
        changed = content.copy()
        changed[rng.integers(0, len(content), 1 + count % 4)] = rng.integers(0, 256)
        (tmp_path / "changed").write_bytes(changed)
        try:
            found = read_tensors(tmp_path / "changed")
        except InputError:
            continue
        assert sum(value.nbytes for value in found.values()) < 2 * len(content)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="only Linux says how much memory is taken")
def test_files_are_mapped_and_not_copied(write):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    path = write(state(a=tensor(0, (1 << 24,), (1,), storage(numel=1 << 24))), {"0": bytes(1 << 26)})
    before = resident()
    assert read_tensors(path)["a"].nbytes == 1 << 26
    assert resident() - before < 1 << 24
