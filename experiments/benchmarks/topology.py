"""Train one recipe on other hardware: how far parameters, statistics and EMA are from those of one device.

    python experiments/benchmarks/topology.py [--model resnet20] [--steps 20]

Trains on the digits with one device and with every combination of devices and gradient accumulation below, on virtual
devices of the CPU, and as two processes of four devices each. Each row says how far the result is from that of one
device: in float64 the largest difference of any number, relative to the largest of its array; in float32 the norm of
all differences, relative to that of all numbers. Twenty steps amplify rounding. The first row of each recipe shows by
how much: one device, with initial parameters that differ in their last bit.
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

# Before jax is imported; the tests have eight devices of their own
if __name__ == "__main__":
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

from experiments import script
from resnet_jax.input_pipeline.device_input import open_device_split, training_batches
from resnet_jax.parallel.hosts import HostOptions, join_hosts
from resnet_jax.parallel.sharding import ParamSharding, mesh_of, place
from resnet_jax.recipe import Augment, Data, Model, Optimizer, Recipe, Schedule, load_recipe, to_json
from resnet_jax.training.init import init_train_state, shardings
from resnet_jax.training.make_step import make_train_step, step_constants
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources
from resnet_jax.training.state import TrainState
from resnet_jax.training.teacher import with_teacher

# BatchNorm over 8 images, so that 8 devices hold whole groups of a batch of 256 in 4 microbatches; and everything that
# is random
RECIPE = Recipe(
    model=Model(name="resnet20", norm_group_size=8, dropout=0.1, drop_path=0.1),
    data=Data(name="digits"),
    augment=Augment(crop_padding=1, hflip=True, erase_prob=0.25, mixup_alpha=0.2, cutmix_alpha=1.0),
    optimizer=Optimizer(lr=0.05),
    schedule=Schedule(warmup=5),
    batch_size=256,
    epochs=None,
    steps=20,
    ema_decay=0.9,
    ema_warmup=False,
)
WHOLE = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, norm_group_size=None))
DEVICE_COUNT = "--xla_force_host_platform_device_count"
ONE: dict[str, Any] = {"devices": 1, "grad_accum_steps": 1}
# (devices, gradient accumulation steps, parameter sharding)
SETTINGS: list[tuple[int, int, ParamSharding]] = [
    (devices, steps, "replicated") for devices in (1, 2, 4, 8) for steps in (1, 2, 4) if devices * steps > 1
]

Result = dict[str, np.ndarray]


@cache
def initial_state(recipe: Recipe) -> TrainState:
    """Return the state before the first step, as NumPy arrays."""
    setup = make_setup(recipe, open_sources(recipe, Path("data")).dataset)
    one = setup._replace(mesh=mesh_of(jax.local_devices()[:1]))
    state: TrainState = jax.device_get(init_train_state(one))
    return state


def train(
    recipe: Recipe,
    *,
    devices: int | None,
    grad_accum_steps: int,
    double: bool,
    param_sharding: ParamSharding = "replicated",
    nudge: bool = False,
) -> Result:
    """Return parameters, statistics and EMA after all steps of a recipe, by their paths.

    Args:
        recipe: on the digits.
        devices: number of devices; None is all.
        grad_accum_steps: microbatches per step.
        double: compute in float64.
        param_sharding: of parameters, optimiser state and EMA.
        nudge: change the last bit of the initial parameters.
    """
    sources = open_sources(recipe, Path("data"))
    setup = make_setup(
        recipe, sources.dataset, devices, grad_accum_steps=grad_accum_steps, param_sharding=param_sharding
    )
    setup = with_teacher(setup)
    with jax.enable_x64(double):
        state = jax.tree.map(place, initial_state(recipe), shardings(setup))
        if double:
            setup = setup._replace(model=setup.model.clone(dtype=jnp.float64))
            if teacher := setup.teacher:
                setup = setup._replace(teacher=teacher._replace(model=teacher.model.clone(dtype=jnp.float64)))
            state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
        if nudge:
            params = jax.tree.map(lambda x: x * (1 + jnp.finfo(x.dtype).eps), state.params)
            state = state.replace(params=params)
        split, train_step = open_device_split(sources.train, setup.mesh), make_train_step(setup)
        constants = step_constants(setup)
        for inputs in training_batches(split, recipe, range(setup.steps)):
            state, _ = train_step(state, inputs, *constants)
        leaves = jax.tree_util.tree_leaves_with_path((state.params, state.batch_stats, state.ema))
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def difference(one: Result, other: Result) -> float:
    """Return the largest difference between two results, relative to the largest number of its array."""
    assert one.keys() == other.keys()
    return max(float(np.abs(a - other[name]).max() / np.abs(a).max()) for name, a in one.items())


def distance(one: Result, other: Result) -> float:
    """Return the norm of all differences between two results, relative to that of all numbers."""
    assert one.keys() == other.keys()
    squares = sum(float(np.square(a - other[name], dtype=np.float64).sum()) for name, a in one.items())
    return float(np.sqrt(squares / sum(float(np.square(a, dtype=np.float64).sum()) for a in one.values())))


def with_device_count(devices: int) -> str:
    """Return XLA_FLAGS of this process with another number of virtual devices."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(DEVICE_COUNT)]
    return " ".join([*flags, f"{DEVICE_COUNT}={devices}"])


def train_in_processes(recipe: Recipe, *, processes: int, devices: int, double: bool) -> Result:
    """Return the result of `train` on several processes of this machine with `devices` each."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        Path(folder, "recipe.json").write_text(to_json(recipe))
        words = [sys.executable, __file__, "--worker", folder, "--num-processes", str(processes)]
        words += ["--coordinator-address", f"localhost:{port}", *(["--double"] if double else [])]
        environment = os.environ | {"XLA_FLAGS": with_device_count(devices), "JAX_PLATFORMS": "cpu"}
        free.close()
        # Gloo writes to stdout
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        workers = [
            subprocess.Popen([*words, "--process-id", str(number)], env=environment, **pipes)
            for number in range(processes)
        ]
        errors = [worker.communicate(timeout=600)[1] for worker in workers]
        assert not any(worker.returncode for worker in workers), errors
        with np.load(Path(folder, "result.npz")) as result:
            return dict(result)


def work(arguments: argparse.Namespace) -> None:
    """Train as one of several processes; the first writes the result."""
    join_hosts(
        HostOptions(
            coordinator_address=arguments.coordinator_address,
            num_processes=arguments.num_processes,
            process_id=arguments.process_id,
            init_timeout=120,
        )
    )
    recipe = load_recipe(arguments.worker / "recipe.json")
    result = train(recipe, devices=None, grad_accum_steps=1, double=arguments.double)
    if jax.process_index() == 0:
        np.savez(arguments.worker / "result.npz", allow_pickle=False, **result)


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--model", default=RECIPE.model.name)
    parser.add_argument("--steps", type=script.positive, default=RECIPE.steps)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator-address", help=argparse.SUPPRESS)
    parser.add_argument("--num-processes", type=script.positive, help=argparse.SUPPRESS)
    parser.add_argument("--process-id", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--double", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    print("| BatchNorm over | devices | accumulation steps | processes | parameters | float64 | float32 |")
    print("|---|---:|---:|---:|---|---:|---:|")
    for recipe in (RECIPE, WHOLE):
        model = dataclasses.replace(recipe.model, name=arguments.model)
        compare(dataclasses.replace(recipe, model=model, steps=arguments.steps))
    return None


def compare(recipe: Recipe) -> None:
    """Print the rows of one recipe."""
    group = recipe.model.norm_group_size
    settings = [*SETTINGS, (8, 1, "sharded"), (8, 4, "sharded")]
    if group is None:
        settings = [setting for setting in settings if setting[1] == 1]
    one = {double: train(recipe, **ONE, double=double) for double in (True, False)}
    name = f"{group} images" if group else "the batch"

    def row(what: str, result: Callable[..., Result]) -> None:
        far = f"{difference(one[True], result(double=True)):.1e} | {distance(one[False], result(double=False)):.1e}"
        print(f"| {name} | {what} | {far} |", flush=True)

    row("1 | 1 | 1 | replicated, nudged", partial(train, recipe, **ONE, nudge=True))
    for devices, steps, sharding in settings:
        result = partial(train, recipe, devices=devices, grad_accum_steps=steps, param_sharding=sharding)
        row(f"{devices} | {steps} | 1 | {sharding}", result)
    row("8 | 1 | 2 | replicated", partial(train_in_processes, recipe, processes=2, devices=4))


if __name__ == "__main__":
    script.run(main, large_pages=False)
