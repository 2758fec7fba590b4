"""Exports through the command line: checked, described, verified elsewhere."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICKLY
from flax import linen as nn

from resnet_jax import Parts, export, verify_export
from resnet_jax.cli.main import main
from resnet_jax.errors import InputError
from resnet_jax.inference.export import export as module
from resnet_jax.inference.load_run import load_run
from resnet_jax.inference.predict import predict_probs

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


PIXELS = np.random.default_rng(1).integers(0, 256, (8, 8, 8, 1), np.uint8)


def answers(run):
    """What `predict` says of the pixels."""
    setup, state = load_run(run, devices=1)
    return np.asarray(jax.jit(partial(predict_probs, setup), compiler_options=QUICKLY)(state, PIXELS))


@pytest.mark.parametrize("out", ["net.onnx", "net.stablehlo"])
def test_uint8_in_and_probabilities_out_for_any_batch(run, out, capsys):
    assert main(["export", "run", out, "--preprocess", "--outputs", "probabilities"]) == 0
    assert "same prediction for 4 of 4 images" in capsys.readouterr().out
    run_file = module.FORMATS[Path(out).suffix].load(Path(out).read_bytes())
    expected = answers(run)
    for count in (1, 3, 8):
        np.testing.assert_allclose(run_file(PIXELS[:count])[0], expected[:count], rtol=1e-5)
    description = json.loads(Path(f"{out}.json").read_text())
    assert description["classes"] == ["a", "b", "c"]
    assert (description["preprocessing"]["mean"], description["preprocessing"]["std"]) == ([0.5], [0.5])
    assert "| Network | resnet8, 4,843 parameters |" in Path(f"{out}.md").read_text()
    assert main(["verify", out]) == 0
    assert "same prediction for 4 of 4 images" in capsys.readouterr().out


def test_an_onnx_file_says_what_it_is_and_runs_without_jax(run):
    export("run", "net.onnx", batch_size=2)
    model = onnx.load("net.onnx")
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(metadata["classes"]) == ["a", "b", "c"]
    assert (model.ir_version, [opset.version for opset in model.opset_import]) == (10, [21])
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"conv1.weight", "conv1.bias", "layer2.0.conv2.weight", "fc.weight", "fc.bias"} <= names
    assert names == {name for node in model.graph.node for name in node.input} & names
    assert not any(node.op_type in ("Transpose", "BatchNormalization", "Identity") for node in model.graph.node)
    code = (
        "import sys; sys.modules.update(jax=None, resnet_jax=None)\n"
        "import numpy as np, onnxruntime as ort\n"
        "session = ort.InferenceSession('net.onnx')\n"
        "print(session.run(None, {'images': np.zeros((2, 1, 8, 8), np.float32)})[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 3)"


def test_what_differs_is_not_written(run, monkeypatch, capsys):
    file_format = module.FORMATS[".onnx"]

    def wrong(content):
        return lambda images: [output + 1e-3 * np.abs(output).max() for output in file_format.load(content)(images)]

    monkeypatch.setitem(module.FORMATS, ".onnx", file_format._replace(load=wrong))
    assert main(["export", "run", "net.onnx"]) == 2
    assert "net.onnx differs from the network: largest relative difference 1.0e-03" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_wrong_use(run, monkeypatch, capsys):
    Path("there.onnx").write_text("mine")
    export("run", "net.onnx")
    for words, message in (
        (["export", "run", "net.pb"], "unknown ending '.pb'; known: .onnx, .tflite, .stablehlo"),
        (["export", "run", "there.onnx"], "there.onnx: exists; choose another name, or replace it with --force"),
        (["export", "run", "nowhere/net.onnx"], "nowhere: no such folder"),
        (["export", "nothing", "other.onnx"], "nothing: no such run or weights"),
        (["export", "run", "other.onnx", "--batch-size", "0"], "--batch-size is 0"),
        (["verify", "there.onnx"], "there.onnx.json: missing"),
        (["verify", "gone.onnx"], "gone.onnx: no such file"),
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert Path("there.onnx").read_text() == "mine"
    Path("net.onnx").write_bytes(Path("net.onnx").read_bytes() + b"\0")
    with pytest.raises(InputError, match="is not the file that net.onnx.json describes"):
        verify_export("net.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", "run", "other.onnx"]) == 2
    assert "onnxruntime is missing; `pip install onnx onnxruntime`" in capsys.readouterr().err
    assert main(["export", "run", "net.onnx", "--force"]) == 2


def test_a_full_disk_leaves_nothing(run, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_atomic", full)
    assert main(["export", "run", "net.onnx"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["run"]


class Own(nn.Module):
    """A network that is not a ResNet; reversed, it has an operation that ours does not translate."""

    reverse: bool = False

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.gelu(nn.GroupNorm(2, name="norm")(nn.Conv(4, (3, 3), strides=2, name="conv")(x)))
        x = jax.image.resize(x, (x.shape[0], 7, 5, 4), "bilinear").max(1)
        x = jnp.concatenate([x[:, 1:], jnp.flip(x, 1) if self.reverse else x], 1)
        return nn.Dense(3, name="out")(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("reverse", [False, True])
def test_networks_of_ones_own(reverse, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = own_network(tiny, Parts(model=Own(reverse)))
    monkeypatch.setattr(module, "open_network", lambda *args, **options: network)
    monkeypatch.setattr(module, "_license", lambda *args: "")
    if reverse:
        with pytest.raises(InputError, match="ONNX export does not know the operation rev"):
            export("run", "own.onnx")
        assert not list(Path().iterdir())
    else:
        assert export("run", "own.onnx").difference.relative < 1e-5
        assert "conv/kernel" in str(onnx.load("own.onnx").graph.initializer)


def own_network(recipe, parts):
    from resnet_jax.inference.export.fold import fold_batch_norm
    from resnet_jax.inference.export.network import Network
    from resnet_jax.run_dir.files import DatasetInfo
    from resnet_jax.training.setup import make_setup

    setup = make_setup(recipe, DatasetInfo(("a", "b", "c"), (8, 8, 1), 1, ""), 1, parts=parts)
    init = jax.jit(parts.model.init, compiler_options=QUICKLY)
    variables = jax.device_get(init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    return Network(setup, parts.model, variables, fold_batch_norm(parts.model, variables, (8, 8, 1)))
