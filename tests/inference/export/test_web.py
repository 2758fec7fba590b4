"""The page for a browser, in headless Chromium if there is one."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax.cli.main import main
from resnet_jax.inference.export import web
from resnet_jax.inference.predict import predict
from resnet_jax.recipe import Data

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_a_folder_with_all_that_the_page_needs(run, monkeypatch, capsys):
    Path("dist").mkdir()
    for name in web.RUNTIME:
        Path("dist", name).write_text("runtime")
    assert main(["export", "run", "page", "--to", "web"]) == 2
    assert "--to web needs --runtime" in capsys.readouterr().err
    assert main(["export", "run", "page", "--to", "web", "--runtime", "dist"]) == 2
    assert "is not that of onnxruntime-web 1.30.0" in capsys.readouterr().err
    assert main(["export", "run", "page", "--to", "web", "--runtime", "nowhere"]) == 2
    assert "nowhere: no onnxruntime-web" in capsys.readouterr().err
    assert not Path("page").exists()
    digest = web.hashlib.sha256(b"runtime").hexdigest()
    monkeypatch.setattr(web, "RUNTIME", dict.fromkeys(web.RUNTIME, digest))
    assert main(["export", "run", "page", "--to", "web", "--runtime", "dist"]) == 0
    ours = {"index.html", "network.onnx", "network.onnx.json", "network.onnx.md"}
    assert {path.name for path in Path("page").iterdir()} == ours | set(web.RUNTIME)
    assert sorted(path.name for path in Path().iterdir()) == ["dist", "page", "run"]
    # Nothing is fetched from elsewhere
    assert not re.findall(r"https?://", Path("page/index.html").read_text())
    assert main(["export", "run", "page", "--to", "web", "--runtime", "dist"]) == 2
    assert "page: exists; choose another name, or replace it with --force" in capsys.readouterr().err
    assert main(["export", "run", "page", "--to", "web", "--runtime", "dist", "--force"]) == 0


@pytest.mark.slow
def test_the_page_answers_as_predict_does(make_run):
    """Of a picture that is resized; RESNET_JAX_ORT_WEB names the tarball of onnxruntime-web."""
    chromium, runtime = shutil.which("chromium"), os.environ.get("RESNET_JAX_ORT_WEB")
    if chromium is None or runtime is None:
        pytest.skip("needs chromium and RESNET_JAX_ORT_WEB")
    make_run((8, 8, 3), ("cat", "dog", "<b>"), data=Data(name="tiny", crop_pct=0.875, image_size=8))
    assert main(["export", "run", "page", "--to", "web", "--runtime", runtime]) == 0
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8).repeat(9, 0).repeat(9, 1)
    Image.fromarray(picture).save("page/x.png")
    found = read_page(chromium, Path("page"), "x.png")
    expected = predict("run", ["page/x.png"])[0]
    assert [name for name, _ in found] == list(expected.classes)
    np.testing.assert_allclose([float(p) / 100 for _, p in found], expected.probabilities, atol=2e-3)


def read_page(chromium, folder, picture):
    """Return classes and percentages that the page shows."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/index.html?picture={picture}"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", "--dump-dom"]
        done = subprocess.run([chromium, *flags, address], capture_output=True, text=True, timeout=120)
        server.shutdown()
    return re.findall(r'class="name" title="([^"]*)".*?class="number">([\d.]+)%', done.stdout)
