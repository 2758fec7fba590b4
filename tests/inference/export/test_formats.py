"""Ten networks in the other formats, and files of each format where hardly a package is installed."""

import subprocess
import sys
import sysconfig
import venv
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from export.test_litert import needs_litert
from export.test_onnx import FAMILIES, network_of, small
from resnet_jax import export
from resnet_jax.inference.export import litert
from resnet_jax.inference.export.check import compare
from resnet_jax.inference.export.export import FORMATS
from resnet_jax.inference.export.interface import Interface
from resnet_jax.inference.export.network import normalized, reference
from resnet_jax.models.backbone import with_fields
from resnet_jax.models.zoo import MODELS

SITE = Path(sysconfig.get_path("purelib"))
TEN = (*FAMILIES, "resnet18_1d", "wide_resnet50_2")
OF_JAX = ("jax", "jaxlib", "numpy", "numpy.libs", "ml_dtypes", "opt_einsum", "scipy", "scipy.libs")


@pytest.mark.slow
@pytest.mark.parametrize("name", TEN)
@pytest.mark.parametrize("ending", [".stablehlo", pytest.param(".tflite", marks=needs_litert)])
def test_ten_networks(name, ending):
    network = network_of(small(MODELS[name]))
    interface = Interface(batch_size=1 if ending == ".tflite" else None)
    content = FORMATS[ending].write(network, interface, {})
    pixels = np.random.default_rng(0).integers(0, 256, (2, *network.image_shape), np.uint8)
    found = FORMATS[ending].load(content)(normalized(network, pixels))
    difference = compare(found, reference(network, interface, pixels))
    assert difference.relative < 1e-4
    assert difference.same == 2


DETECTORS = {
    "retinanet_resnet18_fpn": {"anchor_sizes": ((8, 10), (16, 20)), "head_depth": 1, "extra": "none"},
    "fcos_resnet50_fpn": {"anchor_sizes": (8, 16), "head_depth": 1, "extra": "none"},
    "fasterrcnn_resnet50_fpn": {"anchor_sizes": (8, 16, 32, 64), "hidden": 8, "proposals": (40, 30)},
}


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "name"), list(product([".stablehlo", ".onnx"], DETECTORS)))
def test_detectors_find_the_same_boxes(ending, name):
    fields = DETECTORS[name]
    backbone = {"depths": (1, 1, 1), "width": 4, "num_classes": 7, "input_shape": (32, 32, 3)}
    model = with_fields(MODELS[name], **backbone, pyramid_width=32, **fields)
    network, interface = network_of(model), Interface()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    found = FORMATS[ending].load(FORMATS[ending].write(network, interface, {}))(normalized(network, pixels))
    expected = reference(network, interface, pixels)
    # Boxes, labels and scores
    assert (found[0].shape[::2], found[1].dtype) == ((3, 4), np.int32)
    assert (expected[1] >= 0).any()
    difference = compare(found, expected)
    assert difference.relative < 1e-4
    assert difference.same == 3


def run_alone(packages, code, home):
    """Run code in a Python that finds these packages and no others, and return what it prints."""
    home.mkdir()
    for name in packages:
        found = [path for path in (SITE / name, SITE / f"{name}.py") if path.exists()]
        for path in found:
            (home / path.name).symlink_to(path)
    # -I and -S: neither the site packages nor those of the environment
    words = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(home)!r})\n{code}"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_a_stablehlo_file_needs_jax_and_flatbuffers_alone(run, tmp_path):
    export("run", "net.stablehlo")
    code = (
        "import jax, numpy as np\nfrom jax import export\n"
        "file = export.deserialize(bytearray(open('net.stablehlo', 'rb').read()))\n"
        "print(file.call(np.zeros((3, 8, 8, 1), np.float32)).shape, 'flax' in sys.modules)"
    )
    assert run_alone((*OF_JAX, "flatbuffers"), code, tmp_path / "some").split("\n")[0] == "(3, 3) False"


@pytest.mark.slow
def test_an_onnx_file_needs_onnxruntime_and_numpy_alone(run, tmp_path):
    pytest.importorskip("onnxruntime")
    export("run", "net.onnx")
    code = (
        "import onnxruntime, numpy as np\n"
        "session = onnxruntime.InferenceSession('net.onnx')\n"
        "print(session.run(None, {'images': np.zeros((3, 1, 8, 8), np.float32)})[0].shape)"
    )
    assert run_alone(("onnxruntime", "numpy", "numpy.libs"), code, tmp_path / "some").startswith("(3, 3)")


@needs_litert
@pytest.mark.slow
def test_a_litert_file_needs_its_runtime_and_numpy_alone(run, tmp_path):
    export("run", "net.tflite")
    code = (
        "import numpy as np\nfrom ai_edge_litert.interpreter import Interpreter\n"
        "runner = Interpreter('net.tflite').get_signature_runner('serving_default')\n"
        "print(runner(images=np.zeros((1, 8, 8, 1), np.float32))['logits'].shape)"
    )
    packages = ("ai_edge_litert", "backports", "numpy", "numpy.libs")
    assert run_alone(packages, code, tmp_path / "some").startswith("(1, 3)")


@pytest.mark.slow
def test_the_documented_line_leaves_a_working_command(run, tmp_path):
    """In a new environment, whose own packages come before those of this one."""
    home = tmp_path / "new"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *litert.INSTALL.split()]
    if (done := subprocess.run(pip, capture_output=True, text=True)).returncode:
        pytest.skip(f"pip cannot install here: {done.stderr[-200:]}")
    (own,) = home.glob("lib/python*/site-packages")
    (own / "others.pth").write_text(f"{SITE}\n{ROOT}\n")
    for words in (["--help"], ["export", "run", "net.tflite"], ["verify", "net.tflite"]):
        said = subprocess.run([python, "-m", "resnet_jax", *words], capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
    assert "same prediction for 4 of 4 images" in said.stdout
    assert not (own / "typing_extensions.py").exists()
