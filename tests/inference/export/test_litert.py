"""LiteRT files, if its packages are installed as docs/export.md says."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from export.test_export import PIXELS, answers
from resnet_jax.cli.main import main
from resnet_jax.inference.export import litert

needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("litert_converter") is None,
    reason="litert-converter is not installed; docs/export.md has the line",
)


@needs_litert
def test_a_litert_file_has_labels_and_the_same_answers(run, capsys):
    assert main(["export", "run", "net.tflite", "--preprocess", "--outputs", "probabilities"]) == 0
    assert "same prediction for 4 of 4 images" in capsys.readouterr().out
    assert Path("net.labels.txt").read_text() == "a\nb\nc\n"
    (found,) = litert.load_litert(Path("net.tflite").read_bytes())(PIXELS)
    np.testing.assert_allclose(found, answers(run), rtol=1e-4)
    assert main(["verify", "net.tflite"]) == 0


@needs_litert
def test_the_command_line_works_beside_the_converter():
    done = subprocess.run([sys.executable, "-m", "resnet_jax", "--help"], capture_output=True, text=True)
    assert "export" in done.stdout


def test_the_documented_line_is_the_one_of_the_error(monkeypatch, run, capsys):
    monkeypatch.setitem(sys.modules, "litert_converter", None)
    assert main(["export", "run", "net.tflite"]) == 2
    line = re.search("pip install (--no-deps litert[^\n]*)", (ROOT / "docs" / "export.md").read_text())[1]
    assert f"litert_converter is missing; `pip install {line}`" in capsys.readouterr().err


@needs_litert
@pytest.mark.parametrize("words", [[], ["--preprocess", "--outputs", "probabilities"]], ids=["logits", "uint8"])
def test_int8_answers_nearly_as_float_does(run, capsys, words):
    """Of a network with a layer that is zero for all images."""
    assert main(["export", "run", "net.tflite", "--int8", "train", "--calibration-images", "16", *words]) == 0
    assert "int8: largest relative difference" in capsys.readouterr().out
    assert main(["verify", "net.tflite"]) == 0
    told, content = json.loads(Path("net.tflite.json").read_text())["int8"], Path("net.tflite").read_bytes()
    taken, given = (next(iter(details.values())) for details in litert.signature_details(content))
    for name, details in (("images", taken), (words[-1] if words else "logits", given)):
        assert told[name]["dtype"] == np.dtype(details["dtype"]).name
        assert (told[name]["scale"], told[name]["zero_point"]) == pytest.approx(details["quantization"])
    if words:
        (found,) = litert.load_litert(content)(PIXELS)
        np.testing.assert_allclose(found, answers(run), atol=0.05)


@needs_litert
def test_float16_halves_the_file(run, capsys):
    assert main(["export", "run", "net.tflite"]) == 0
    size = Path("net.tflite").stat().st_size
    assert main(["export", "run", "half.tflite", "--float16", "--preprocess", "--outputs", "probabilities"]) == 0
    assert f"float16 {Path('half.tflite').stat().st_size:,}" in capsys.readouterr().out
    assert Path("half.tflite").stat().st_size < 0.7 * size
    (found,) = litert.load_litert(Path("half.tflite").read_bytes())(PIXELS)
    np.testing.assert_allclose(found, answers(run), rtol=1e-2)
    assert main(["verify", "half.tflite"]) == 0
    assert main(["export", "run", "half.onnx", "--float16"]) == 2
    assert "--float16 is for .tflite, without --int8" in capsys.readouterr().err
