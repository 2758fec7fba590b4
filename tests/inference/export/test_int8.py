"""Quantisation after training."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.test_export import PIXELS, answers
from resnet_jax import export
from resnet_jax.cli.main import main
from resnet_jax.errors import InputError
from resnet_jax.inference.export.export import FORMATS
from resnet_jax.inference.load_run import load_run
from resnet_jax.recipe import Model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_int8_of_a_training_split(run, capsys):
    words = ["--int8", "train", "--calibration-images", "16", "--split", "test", "--keep-float", "stem/conv"]
    assert main(["export", "run", "net.onnx", *words]) == 0
    out = capsys.readouterr().out
    for line in ("Accuracy, test, onnx: ", "Accuracy, test, onnx int8: ", "of 10 wrong", "Noisiest layers: stage"):
        assert line in out
    model = onnx.load("net.onnx")
    constants = {tensor.name for tensor in model.graph.initializer}
    plain = [n.name for n in model.graph.node if n.op_type == "Conv" and n.input[1] in constants]
    assert plain == ["stem/conv/Conv"]
    kernels = [t for t in model.graph.initializer if t.name.endswith("weight_quantized")]
    assert {t.data_type for t in kernels} == {onnx.TensorProto.INT8}
    scales = {t.name: t.dims for t in model.graph.initializer if t.name.endswith("weight_scale")}
    assert list(scales["layer1.0.conv1.weight_scale"]) == [8]
    assert json.loads(Path("net.onnx.json").read_text())["int8"] == {
        "calibration": "train",
        "images": 16,
        "keep_float": ["stem/conv"],
    }
    assert "| Accuracy, test, onnx int8 |" in Path("net.onnx.md").read_text()
    assert main(["verify", "net.onnx"]) == 0


def test_calibration_images_of_a_folder(run, capsys):
    Path("photos").mkdir()
    for number in range(8):
        if number == 7:
            Path("photos/7.png").write_bytes(b"no image")
        else:
            Image.fromarray(np.full((9, 12), 30 * number, np.uint8)).save(f"photos/{number}.png")
    with pytest.raises(InputError, match="photos: only 7 images can be read; calibration needs 8 or more"):
        export("run", "net.onnx", int8="photos")
    Image.fromarray(np.zeros((9, 12), np.uint8)).save("photos/8.png")
    assert export("run", "net.onnx", int8="photos").report["Size"].endswith(f"int8 {Path('net.onnx').stat().st_size:,}")


@pytest.mark.slow
def test_a_run_that_trained_with_8_bits_keeps_its_ranges(make_run, capsys):
    fields = {"depths": (1, 1), "width": 8}
    run = make_run(model=Model(name="resnet8", fields=fields, quantize=True))
    for out in ("net.onnx", "net.stablehlo"):
        assert main(["export", "run", out, "--preprocess", "--outputs", "probabilities"]) == 0
        (found,) = FORMATS[Path(out).suffix].load(Path(out).read_bytes())(PIXELS)
        np.testing.assert_allclose(found, answers(run), atol=2e-3)
        assert main(["verify", out]) == 0
    model = onnx.load("net.onnx")
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    # Each convolution and the head
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 6
    assert {values[name].dtype for name in values if name.endswith("weight_quantized")} == {np.dtype(np.int8)}
    ranges = load_run(run, 1)[1].batch_stats["stem"]["conv"]["quant"]
    scale = values["stem/conv/quant/scale"]
    assert scale == pytest.approx(float(ranges["high"] - ranges["low"]) / 255, rel=1e-6)
    assert values["stem/conv/quant/zero"] == round(-ranges["low"].item() / scale.item())
    assert json.loads(Path("net.onnx.json").read_text())["int8"] == {"calibration": "training"}
    assert main(["export", "run", "other.onnx", "--int8", "train"]) == 2
    assert "was trained with 8 bits; its own ranges are exported; leave --int8 out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["net.onnx", "--int8", "synthetic"], "the network takes (8, 8, 1)"),
        (["net.onnx", "--int8", "nothing"], "unknown data set 'nothing'"),
        (["net.onnx", "--int8", "tiny", "--keep-float", "gate"], "the network has no layer"),
        (["net.stablehlo", "--int8", "tiny"], "--int8 writes .onnx and .tflite, not stablehlo"),
    ],
)
def test_wrong_use(run, words, message, capsys):
    assert main(["export", "run", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path(words[0]).exists()
