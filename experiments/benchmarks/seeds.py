"""Speed of a recipe with several seeds: in sequence, each on a device of its own, or in one program.

    python experiments/benchmarks/seeds.py [RECIPE.py] [--count 4] [--batch-size 128] [--rounds 5] [--data-dir FOLDER]

Prints the milliseconds of one step of all seeds, medians and ranges over all rounds, in which the layouts take turns,
and the time until the first steps. In sequence and in one program use one device; a CPU is split into as many virtual
devices as there are seeds, which share its cores.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

from experiments import script
from resnet_jax.runtime.huge_pages import restart_asking

# Before jax is imported; only a CPU can be split
if __name__ == "__main__":
    restart_asking()
    words = script.parser(__doc__)
    words.add_argument("recipe", nargs="?", type=Path, default=Path(__file__).parent.parent / "digits.py")
    words.add_argument("--count", type=script.positive, default=4)
    words.add_argument("--batch-size", type=script.positive, default=128)
    words.add_argument("--rounds", type=script.positive, default=5)
    words.add_argument("--data-dir", type=Path, default=Path("data"))
    options = words.parse_args()
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={options.count}")

from dataclasses import replace

import jax
from jax.sharding import Mesh

from resnet_jax.parallel.sharding import data_mesh
from resnet_jax.recipe import Recipe, load_recipe
from resnet_jax.training.options import RunOptions
from resnet_jax.training.seed_layout import SeedRuns, device_slices, seconds_per_round
from resnet_jax.training.setup import Parts
from resnet_jax.training.sources import open_sources


def seed_runs(recipe: Recipe, data_dir: Path, count: int) -> SeedRuns:
    """Return the runs of seeds 0 to `count` - 1, which write nothing."""
    return SeedRuns(
        recipes={seed: replace(recipe, seed=seed) for seed in range(count)},
        out=Path(),
        sources=open_sources(recipe, data_dir),
        mesh=data_mesh(1),
        options=RunOptions(),
        parts=Parts(),
        loggers=(),
        log=lambda line: None,
        programs={},
        stacked={},
        corrupt={},
        stop=lambda: 0,
    )


def main(options: argparse.Namespace) -> None:
    recipe, count, one = load_recipe(options.recipe), options.count, data_mesh(1)
    recipe = replace(recipe, batch_size=options.batch_size)
    runs = seed_runs(recipe, options.data_dir, count)
    layouts: dict[str, list[Mesh]] = {"sequential": [one], "vmap": [one] * count}
    if jax.device_count() > 1:
        layouts["devices"] = device_slices(data_mesh(), count, recipe.batch_size)
    compiling: dict[str, float] = {}
    rounds: dict[str, list[float]] = {name: [] for name in layouts}
    for name, meshes in layouts.items():
        start = time.perf_counter()
        seconds_per_round(runs, meshes, name)
        compiling[name] = time.perf_counter() - start
    for _ in range(options.rounds):
        for name, meshes in layouts.items():
            groups = -(-count // len(meshes))
            rounds[name].append(groups * seconds_per_round(runs, meshes, name))
    device, model = jax.devices()[0].device_kind, recipe.model.name
    print(f"{count} seeds of {model}, batches of {recipe.batch_size}, {jax.device_count()} x {device}\n")
    print("| layout | ms per step of all seeds, median | range | until the first steps, s |\n|---|--:|--:|--:|")
    for name, seconds in rounds.items():
        milliseconds = [1000 * one for one in seconds]
        ends = f"{min(milliseconds):.1f} to {max(milliseconds):.1f}"
        print(f"| {name} | {statistics.median(milliseconds):.1f} | {ends} | {compiling[name]:.0f} |")


if __name__ == "__main__":
    script.run(lambda: main(options), large_pages=False)
