"""What torch itself saves, in both formats; all but the real files are left out where torch is not installed."""

import argparse
import datetime
import pathlib
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
from torch_parts import refusal

from resnet_jax.weights.tensors import read_tensors


@pytest.fixture
def save(tmp_path, request):
    """torch.save in one of its formats and protocols."""
    torch = pytest.importorskip("torch")

    def save(value, new=True, protocol=2):
        path = tmp_path / "torch.pth"
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
        return path

    return save


@pytest.mark.parametrize("stem", ["resnet20-12fca82f", "resnet56-4bfd9763"])
def test_real_files_are_the_same_in_both_formats(real_data, stem):
    old, new = (read_tensors(real_data / "weights" / f"{stem}{suffix}") for suffix in (".th", ".safetensors"))
    old = {name.removeprefix("module."): tensor for name, tensor in old.items()}
    assert set(old) == set(new)
    for key, value in new.items():
        assert old[key].dtype == value.dtype
        np.testing.assert_array_equal(old[key], value)


def examples(torch, new):
    """Checkpoints as they are saved, each with the state dict that is in it."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    plain, base = network.state_dict(), torch.arange(24.0).reshape(2, 3, 4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2, 2])
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    views = {"a": base, "b": base[1], "c": base.transpose(0, 2), "d": base[:, ::2, 1:3], "e": base.reshape(-1)[5]}
    running = {
        "epoch": 3,
        "best_prec1": np.float64(91.5),
        "when": {"at": [1, (2, None)], "size": torch.Size([1, 2]), "device": torch.device("cpu"), "set": {1, 2}},
        "dtype": torch.float32,
        "bytes": b"\xff\x00",
        "large": 1 << 70,
        "args": argparse.Namespace(lr=0.1, betas=[(1, None)], out=pathlib.Path("runs")),
        "seen": defaultdict(list, {(1, 2): [datetime.datetime(2026, 11, 28), 1j, frozenset({1})]}),
        "rng": [np.random.default_rng(0), np.random.get_state(), torch.get_rng_state()],  # noqa: NPY002
        "complex": torch.ones(2, dtype=torch.complex64) if new else None,
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
    }
    return {
        "network": (plain, plain),
        "checkpoint": ({**running, "state_dict": plain, "state_dict_ema": {"x": base}}, plain),
        "parallel": ({"model": plain, "model_ema": {"x": base}}, plain),
        "parameters": ({key: torch.nn.Parameter(value) for key, value in views.items()}, views),
        "views": (views, views),
        "dtypes": ({kind: torch.tensor([0, 1, 1], dtype=getattr(torch, kind)) for kind in kinds}, None),
        "scalars": ({kind: torch.tensor(1, dtype=getattr(torch, kind)) for kind in kinds}, None),
        "empty": (OrderedDict(x=torch.zeros(0), y=torch.zeros(3, 0, 2), z=torch.zeros(0, dtype=torch.int8)), None),
    }


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saves_is_read(save, new, protocol):
    torch = pytest.importorskip("torch")
    for saved, expected in examples(torch, new).values():
        found, expected = read_tensors(save(saved, new, protocol)), expected or saved
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert (found[key].shape, str(found[key].dtype)) == (tuple(value.shape), str(value.dtype)[6:])
            np.testing.assert_array_equal(found[key].astype(np.float64), value.detach().double().numpy())


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves_beyond_plain_tensors_is_named(save, new):
    torch = pytest.importorskip("torch")
    assert "has 'torch.nn.modules.linear.Linear'" in refusal(save(torch.nn.Linear(2, 3), new))
    assert "has 'torch.ComplexFloatStorage'" in refusal(save({"a": torch.ones(2, dtype=torch.complex64)}, new))
    assert "has 'torch._utils._rebuild_tensor_v3'" in refusal(save({"a": torch.ones(2, dtype=torch.uint16)}, new))
    assert "tensor 'a': it needs more numbers" in refusal(save({"a": torch.ones(1).expand(5)}, new))


@pytest.mark.filterwarnings("ignore")  # newer torch advises against it
def test_torch_script_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2)), tmp_path / "x.pt")
    assert "TorchScript archive" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_cuts_of_what_torch_saves_are_refused(save, tmp_path, new):
    torch = pytest.importorskip("torch")
    content = save(torch.nn.Linear(2, 3).state_dict(), new).read_bytes()
    for length in range(0, len(content), 3):
        (tmp_path / "cut").write_bytes(content[:length])
        refusal(tmp_path / "cut")
