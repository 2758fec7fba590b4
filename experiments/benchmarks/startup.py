"""Time of a command from its start to its end: without a compilation cache, with an empty one, and with a filled one.

    python -m experiments.benchmarks.startup [--model resnet50] [--rounds 3]

Trains two steps on the synthetic images, resumes for two more, predicts an image and evaluates, each in a process of
its own, and prints wall-clock and CPU seconds, medians and ranges over all rounds; the settings take turns, so that a
busy machine is equally busy for each.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments import script
from resnet_jax.data.masks import encode_mask

FLAGS = "--data.name synthetic --batch-size 8 --schedule.warmup 0"
NO_CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}


def timed(words: str, cache: Path, **settings: str) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of a command whose caches are in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache)} | settings
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "resnet_jax", *words.split()]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_round(model: str, folder: Path) -> dict[str, tuple[float, float]]:
    """Return the seconds of each command; what is warm has run once before."""
    train = f"train {FLAGS} --model.name {model} --stop-at 2 --out {folder}"
    image, run = folder / "image.png", folder / "warm"
    image.write_bytes(encode_mask(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    found = {
        "train, without a cache": timed(f"{train}/plain", folder, **NO_CACHE),
        "train, cold": timed(f"{train}/cold", folder),
        "train, warm": timed(f"{train}/warm", folder),
        "train, resumed, warm": timed(f"train {run} --stop-at 4", folder),
    }
    for name, words in {"predict": f"predict {run} {image}", "evaluate": f"evaluate {run}"}.items():
        found |= {f"{name}, {state}": timed(words, folder) for state in ("cold", "warm")}
    return found


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=script.positive, default=3)
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(time_round(options.model, Path(folder)))
    print(f"| {options.model} | seconds, median | range | CPU seconds, median |\n|---|--:|--:|--:|")
    for name in rounds[0]:
        wall, cpu = zip(*(found[name] for found in rounds), strict=True)
        ends = f"{min(wall):.1f} to {max(wall):.1f}"
        print(f"| {name} | {statistics.median(wall):.1f} | {ends} | {statistics.median(cpu):.1f} |")


if __name__ == "__main__":
    script.run(main, large_pages=False)
