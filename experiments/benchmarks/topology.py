"""The same recipe on other hardware: how far parameters, statistics and averages are from those of one device.

    python experiments/benchmarks/topology.py [--model resnet20] [--steps 20]

Trains on the digits with one device and with every combination of devices and accumulation below, on virtual devices
of the CPU, and as two processes of four devices each. Printed is how far the results are from those of one device: in
float64 the largest difference of any number, relative to the largest of its array; in float32 the length of all
differences, relative to that of all numbers. Twenty steps amplify rounding. The first row of each recipe shows by how
much: one device, with initial parameters that differ in their last bit.
"""

import argparse
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before jax is imported; the tests have eight devices of their own
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

from experiments import script
from resnet_jax.hosts import Hosts, join
from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule, load_recipe, to_json
from resnet_jax.train.devices import mesh_of, place
from resnet_jax.train.feed import supply, training_items
from resnet_jax.train.job import initial, make_advance, open_sources, prepare, shardings, step_key

# Eight images a group, so that eight devices hold whole groups of a batch of 256 in four parts; and all that is random.
RECIPE = Recipe(
    model=Model(name="resnet20", norm_group=8, dropout=0.1, drop_path=0.1),
    data=Data(name="digits"),
    augment=Augment(pad=1, flip=True, erase=0.25, mixup=0.2, cutmix=1.0),
    optimizer=Optimizer(lr=0.05),
    schedule=Schedule(warmup=5),
    batch_size=256,
    epochs=None,
    steps=20,
    ema=0.9,
)
WHOLE = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, norm_group=None))
# (devices, accumulation, what is sharded)
SETTINGS = [
    (devices, accumulate, "nothing") for devices in (1, 2, 4, 8) for accumulate in (1, 2, 4) if devices * accumulate > 1
]


Result = dict[str, np.ndarray]
ONE: dict[str, Any] = {"devices": 1, "accumulate": 1}


@cache
def begun(recipe: Recipe) -> Any:
    """State and totals before the first step, in NumPy."""
    job = prepare(recipe, open_sources(recipe, Path("data")).dataset)
    one = job._replace(mesh=mesh_of(jax.local_devices()[:1]))
    return jax.device_get(initial(one))


def train(
    recipe: Recipe, *, devices: int | None, accumulate: int, double: bool, shard: Any = "nothing", nudge: bool = False
) -> Result:
    """Parameters, statistics and averages after all steps of a recipe, by their paths."""
    sources = open_sources(recipe, Path("data"))
    job = prepare(recipe, sources.dataset, devices, accumulate=accumulate, shard=shard)
    with jax.enable_x64(double):
        state, sums = jax.tree.map(place, begun(recipe), shardings(job))
        if double:
            job = job._replace(model=job.model.clone(dtype=jnp.float64))
            state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
        if nudge:
            params = jax.tree.map(lambda x: x * (1 + jnp.finfo(x.dtype).eps), state.params)
            state = state.replace(params=params)
        data, advance, key = supply(sources.train, job.mesh), make_advance(job), step_key(job)
        for item in training_items(data, recipe.seed, recipe.batch_size, range(job.steps)):
            state, sums, _ = advance(state, sums, item, key, None)
        leaves = jax.tree_util.tree_leaves_with_path((state.params, state.batch_stats, state.ema))
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def difference(one: Result, other: Result) -> float:
    """The largest difference between two such results, relative to the largest number of its array."""
    assert one.keys() == other.keys()
    return max(float(np.abs(a - other[name]).max() / np.abs(a).max()) for name, a in one.items())


def distance(one: Result, other: Result) -> float:
    """The length of all differences, relative to that of all numbers."""
    assert one.keys() == other.keys()
    far = sum(float(np.square(a - other[name], dtype=np.float64).sum()) for name, a in one.items())
    return float(np.sqrt(far / sum(float(np.square(a, dtype=np.float64).sum()) for a in one.values())))


def train_in_processes(recipe: Recipe, *, processes: int, devices: int, double: bool) -> Result:
    """As `train`, by so many processes of so many devices each, which find each other on this machine."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        Path(folder, "recipe.json").write_text(to_json(recipe))
        flags = f"--xla_force_host_platform_device_count={devices}"
        words = [sys.executable, __file__, "--worker", folder, "--hosts", str(processes)]
        words += ["--coordinator", f"localhost:{port}", *(["--double"] if double else [])]
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        free.close()
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}  # Gloo talks
        workers = [
            subprocess.Popen([*words, "--host", str(host)], env=environment, **quiet) for host in range(processes)
        ]
        errors = [worker.communicate(timeout=600)[1] for worker in workers]
        assert not any(worker.returncode for worker in workers), errors
        with np.load(Path(folder, "result.npz")) as result:
            return dict(result)


def work(arguments: argparse.Namespace) -> None:
    """One of several processes; the first writes the result."""
    join(Hosts(coordinator=arguments.coordinator, hosts=arguments.hosts, host=arguments.host, join_timeout=120))
    recipe = load_recipe(arguments.worker / "recipe.json")
    result = train(recipe, devices=None, accumulate=1, double=arguments.double)
    if jax.process_index() == 0:
        np.savez(arguments.worker / "result.npz", allow_pickle=False, **result)


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--model", default=RECIPE.model.name)
    parser.add_argument("--steps", type=script.positive, default=RECIPE.steps)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--hosts", type=script.positive, help=argparse.SUPPRESS)
    parser.add_argument("--host", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--double", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    print("| BatchNorm over | devices | accumulation | processes | sharded | float64 | float32 |")
    print("|---|---:|---:|---:|---|---:|---:|")
    for recipe in (RECIPE, WHOLE):
        model = dataclasses.replace(recipe.model, name=arguments.model)
        compare(dataclasses.replace(recipe, model=model, steps=arguments.steps))
    return None


def compare(recipe: Recipe) -> None:
    """Prints the rows of one recipe."""
    group = recipe.model.norm_group
    settings = [*SETTINGS, (8, 1, "params"), (8, 4, "params")]
    if group is None:
        settings = [(devices, accumulate, shard) for devices, accumulate, shard in settings if accumulate == 1]
    one = {double: train(recipe, **ONE, double=double) for double in (True, False)}
    name = f"{group} images" if group else "the batch"

    def row(what: str, result: Callable[..., Result]) -> None:
        far = f"{difference(one[True], result(double=True)):.1e} | {distance(one[False], result(double=False)):.1e}"
        print(f"| {name} | {what} | {far} |", flush=True)

    row("1 | 1 | 1 | nothing, but nudged", partial(train, recipe, **ONE, nudge=True))
    for devices, accumulate, shard in settings:
        how = partial(train, recipe, devices=devices, accumulate=accumulate, shard=shard)
        row(f"{devices} | {accumulate} | 1 | {shard}", how)
    row("8 | 1 | 2 | nothing", partial(train_in_processes, recipe, processes=2, devices=4))


if __name__ == "__main__":
    script.run(main, large_pages=False)
