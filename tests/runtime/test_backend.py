"""A backend that JAX does not have is one line, whatever command asks for it first."""

import os
import subprocess
import sys

import jax
import pytest

from resnet_jax.runtime.backend import backend_error


@pytest.mark.skipif(len({device.platform for device in jax.devices()} - {"cpu"}) > 0, reason="an accelerator is here")
@pytest.mark.parametrize(
    ("platform", "message"),
    [
        ("cuda", "no backend cuda: no such device is visible; installed: cpu; pip install 'jax[cuda12]' or"),
        ("nonsense", "no backend nonsense: Unable to initialize backend 'nonsense': "),
        ("tpu", "no backend tpu: Unable to initialize backend 'tpu': "),
    ],
)
def test_a_missing_backend_is_one_line(platform, message, tmp_path):
    words = [sys.executable, "-m", "resnet_jax", "train", "--out", "run"]
    env = os.environ | {"JAX_PLATFORMS": platform}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"resnet-jax: {message}")
    assert done.stderr.endswith("unset JAX_PLATFORMS\n")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_there_is_no_such_error_where_there_is_a_backend():
    assert backend_error() is None
