"""Time from the command to its second step: without a compilation cache, with an empty one, and with a filled one.

    python experiments/benchmarks/startup.py [--model resnet50] [--rounds 3]

Trains two steps on the synthetic images, in processes of their own, and prints wall-clock and CPU seconds, medians and
ranges over all rounds; the settings take turns, so that a busy machine is equally busy for each.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments import script

SETTINGS = ("without a cache", "cold", "warm")


def second_step(model: str, folder: Path, **settings: str) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of a command that ends after two steps."""
    words = f"train --data.name synthetic --model.name {model} --batch-size 8 --schedule.warmup 0 --stop-at 2"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "resnet_jax", *words.split(), "--out", str(Path(out) / "run")]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        environment |= {"XDG_CACHE_HOME": str(folder)} | settings
        subprocess.run(command, env=environment, check=True, capture_output=True)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=script.positive, default=3)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {setting: [] for setting in SETTINGS}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for setting in SETTINGS:
                variables = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if setting == SETTINGS[0] else {}
                found[setting].append(second_step(options.model, Path(folder), **variables))
    print(f"| {options.model} | seconds, median | range | CPU seconds, median |\n|---|--:|--:|--:|")
    for setting, times in found.items():
        wall, cpu = zip(*times, strict=True)
        ends = f"{min(wall):.1f} to {max(wall):.1f}"
        print(f"| {setting} | {statistics.median(wall):.1f} | {ends} | {statistics.median(cpu):.1f} |")


if __name__ == "__main__":
    script.run(main, large_pages=False)
