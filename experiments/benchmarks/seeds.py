"""How fast a recipe is trained with several seeds: one after the other, each on a device of its own, or in one program.

    python experiments/benchmarks/seeds.py [RECIPE.py] [--count 4] [--batch-size 128] [--rounds 5] [--data-dir FOLDER]

Prints the milliseconds of one step of all seeds, medians and ranges over all rounds, in which the ways take turns, and
how long each took to compile. One device has to do for the first way and the last; where there is but one, a CPU is cut
into as many virtual ones as there are seeds, which share its cores.
"""

import argparse
import os
import statistics
import time
from functools import cache
from pathlib import Path

from experiments import script
from resnet_jax.huge_pages import restart_asking

if __name__ == "__main__":  # before jax is imported; other devices than those of a CPU are as many as they are
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

from resnet_jax.recipe import load_recipe
from resnet_jax.train.begin import Cut, concrete
from resnet_jax.train.compiling import compiler
from resnet_jax.train.devices import data_mesh
from resnet_jax.train.habits import Feeding
from resnet_jax.train.job import open_sources
from resnet_jax.train.shared import Shared, open_data, share
from resnet_jax.train.ways import choose, seconds_a_round


def main(options: argparse.Namespace) -> None:
    recipe = replace(load_recipe(options.recipe), batch_size=options.batch_size)
    sources = open_sources(recipe, options.data_dir)

    @cache
    def shared_on(mesh: Mesh) -> Shared:
        job, parts = concrete(recipe, sources, Cut(mesh))
        return share(job, *open_data(job, sources, Feeding(), {}), compiler(job, parts, lambda line: None))

    names = ["none", "vmap", *(["devices"] if jax.device_count() > 1 else [])]
    ways, compiling, rounds = {}, {}, dict[str, list[float]]()
    for name in names:
        start, mesh = time.perf_counter(), data_mesh(None if name == "devices" else 1)
        ways[name] = choose([name], options.count, recipe.batch_size, mesh, shared_on, print)
        seconds_a_round(ways[name], shared_on)
        compiling[name] = time.perf_counter() - start
    for _ in range(options.rounds):
        for name, way in ways.items():
            groups = -(-options.count // len(way.meshes))
            rounds.setdefault(name, []).append(groups * seconds_a_round(way, shared_on))
    device, model = jax.devices()[0].device_kind, recipe.model.name
    print(f"{options.count} seeds of {model}, batches of {recipe.batch_size}, {jax.device_count()} x {device}\n")
    print("| way | ms a step of all seeds, median | least to most | until the first steps, s |\n|---|--:|--:|--:|")
    for name, seconds in rounds.items():
        milliseconds = [1000 * one for one in seconds]
        ends = f"{min(milliseconds):.1f} to {max(milliseconds):.1f}"
        print(f"| {name} | {statistics.median(milliseconds):.1f} | {ends} | {compiling[name]:.0f} |")


if __name__ == "__main__":
    script.run(lambda: main(options), large_pages=False)
