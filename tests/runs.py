"""What tests of whole runs share."""

import io
import os
import signal
import socket
import subprocess
import sys
import time

from rich.console import Console

from resnet_jax.recipe import to_json
from resnet_jax.run_dir.files import read_metrics
from resnet_jax.training.options import RunOptions
from resnet_jax.training.run import train

CLOCKS = {"train_seconds", "images_per_second", "data_wait_fraction"}


def quietly(recipe, out, *, data=None, log=(), **options):
    """Train on one device unless `options` say otherwise; return the result and what was printed."""
    parts = {
        name: options.pop(name) for name in ("model", "task", "optimizer", "schedule", "transform") if name in options
    }
    printed = io.StringIO()
    chosen = RunOptions(**{"devices": 1, **options})
    console = Console(file=printed, width=500)
    result = train(recipe, out, options=chosen, data=data, log=log, console=console, **parts)
    return result, printed.getvalue()


def without_clocks(row):
    return {key: value for key, value in row.items() if key not in CLOCKS}


def curve(run):
    return [without_clocks(row) for row in read_metrics(run)]


def killed_and_whole(folder, recipe):
    """Return the curves of a process that is killed after two rows and goes on here, and of one that is not.

    They evaluate every 20 steps, and save every 5.
    """
    (folder / "recipe.json").write_text(to_json(recipe))
    command = [sys.executable, "-m", "resnet_jax", "train", "recipe.json", "--devices", "1"]
    command += ["--eval-every", "20", "--checkpoint-every", "5", "--out"]
    process = subprocess.Popen([*command, "killed"], cwd=folder, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while len(read_metrics(folder / "killed")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    _, said = quietly(recipe, folder / "killed", eval_every=20, checkpoint_every=5)
    assert "resuming at step" in said
    quietly(recipe, folder / "whole", eval_every=20, checkpoint_every=5)
    return curve(folder / "killed"), curve(folder / "whole")


def two_processes_and_one(folder, recipe):
    """Return the curves of two processes of two devices each, and of one with one device; evaluated every 3 steps."""
    (folder / "recipe.json").write_text(to_json(recipe))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    words = [sys.executable, "-m", "resnet_jax", "train", "recipe.json", "--eval-every", "3", "--out", "two"]
    words += ["--device-cache-gib", "0", "--coordinator-address", address, "--num-processes", "2"]
    both = [
        subprocess.Popen(
            [*words, "--process-id", str(host)],
            cwd=folder,
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in (0, 1)
    ]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    quietly(recipe, folder / "one", eval_every=3)
    return curve(folder / "two"), curve(folder / "one")
