"""Published weights through the command line, on the real test images: the same number of errors as PyTorch."""

import json
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.cli.main import main
from resnet_jax.data.augment import normalize
from resnet_jax.data.datasets import cifar10
from resnet_jax.data.source import to_arrays
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.weights.entries import WEIGHTS
from resnet_jax.weights.load import create_model


@pytest.fixture(scope="module")
def folder(real_data, tmp_path_factory):
    """CIFAR-10 in its official layouts."""
    home = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, real_data / "make_cifar10.py", home], check=True, capture_output=True)
    return home


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "errors"),
    [
        ("resnet20-12fca82f.th", 827),
        ("resnet56-4bfd9763.safetensors", 661),
    ],
)
def test_errors(real_data, folder, capsys, name, errors):
    entry = WEIGHTS[f"{name.split('-')[0]}.akamaster_cifar10"]
    file = str(real_data / "weights" / name)
    data = ["--data", "cifar10", "--data-dir", str(folder)]
    assert main(["evaluate", file, "--model", entry.name, *data, "--json", "--devices", "1"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["errors"], values["count"]) == (errors, 10_000)
    assert values["accuracy"] == pytest.approx(1 - errors / 10_000)
    assert entry.top1 == pytest.approx(100 - errors / 100)


@pytest.mark.parametrize("name", ["resnet20-12fca82f", "resnet56-4bfd9763"])
def test_both_files_hold_the_same(real_data, name):
    one, other = (str(real_data / "weights" / f"{name}.{suffix}") for suffix in ("th", "safetensors"))
    model = name.split("-")[0]
    chex.assert_trees_all_equal(create_model(model, pretrained=one)[1], create_model(model, pretrained=other)[1])


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_logits(real_data, folder, count):
    weights = real_data / "weights"
    model, variables = create_model("resnet20", pretrained=str(weights / "resnet20-12fca82f.th"))
    expected = np.load(weights / "resnet20-12fca82f.cifar10_test_logits.npy")
    images, _ = to_arrays(cifar10("test", folder))
    known = WEIGHTS["resnet20.akamaster_cifar10"].preprocessing
    apply = jax.jit(model.apply, compiler_options=compiler_options())
    for start in range(0, count, 1000):
        part = slice(start, start + 1000)
        logits = apply(variables, normalize(jnp.asarray(images[part]), known.mean, known.std))
        np.testing.assert_allclose(logits, expected[part], atol=1e-4)
