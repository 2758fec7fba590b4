"""Training on a GPU: this library, levers of its compiler, the same network in plain flax, and PyTorch, side by side.

    python -m experiments.benchmarks.gpu resnet50 --batch 256
    python -m experiments.benchmarks.gpu resnet20 --batch 128

Every way is a process of its own, because the levers are read when JAX starts; all stay open, and take turns round by
round. bfloat16 (ResNet-50) or float32 (ResNet-20), images that lie on the device. Torch runs in channels_last, under
autocast where it is bfloat16, eagerly and compiled. A way that fails, or a lever that XLA does not know, is a row that
says so. Needs torch with CUDA for its rows; fits in eight minutes (`--minutes`).
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import script
from resnet_jax.bench.step import subject_of
from resnet_jax.data.source import from_arrays
from resnet_jax.model.layers import Conv, SpaceToDepthConv
from resnet_jax.model.resnet import ResNet
from resnet_jax.model.zoo import published
from resnet_jax.recipe import Recipe
from resnet_jax.train.feed import Pick, supply, training_items
from resnet_jax.train.job import initial, make_advance, open_sources, prepare, step_key, unjitted_advance

LR, MOMENTUM, HELD = 0.01, 0.9, 2  # HELD: batches that lie on the device
SECONDS = 1.5  # of a round
TOGETHER = 50  # steps a call

# name: (how a step is made, XLA_FLAGS)
WAYS: dict[str, tuple[str, str]] = {
    "resnet_jax": ("ours", ""),
    "flax, plain": ("plain", ""),
    "torch": ("torch", ""),
    "torch, compiled": ("torch_compiled", ""),
    f"resnet_jax, {TOGETHER} steps a call": ("together", ""),
    "resnet_jax, stem by space to depth": ("blocked", ""),
    "resnet_jax, fused convolutions": ("ours", "--xla_gpu_experimental_enable_conv_fusion=true"),
    "resnet_jax, NHWC forced": ("ours", "--xla_gpu_force_conv_nhwc=true"),
    "resnet_jax, cuDNN fusion level 2": ("ours", "--xla_gpu_cudnn_gemm_fusion_level=2"),
    "resnet_jax, no command buffers": ("ours", "--xla_gpu_enable_command_buffer="),
    "resnet_jax, no autotuning": ("ours", "--xla_gpu_autotune_level=0"),
}

Step = Callable[[], Any]  # takes one step, or `TOGETHER`, and returns what is ready when it is done


class Worker(NamedTuple):
    """A way that is ready to be asked for a round."""

    process: subprocess.Popen
    asked: IO[str]
    told: IO[str]


def ours(recipe: Recipe, together: int = 1, conv: type[Conv] = Conv) -> Step:
    """The step that `resnet-jax train` takes, on images that lie on the device."""
    splits = made_up(recipe)
    sources = open_sources(recipe, Path("data"), splits)
    job = prepare(recipe, sources.dataset, 1)
    job = job._replace(model=job.model.clone(conv=conv))
    state, data, key = initial(job), supply(sources.train, job.mesh), step_key(job)
    items = training_items(data, recipe.seed, recipe.batch_size, range(10**9))
    if together == 1:
        advance = make_advance(job)

        def step() -> Any:
            nonlocal state
            *new, told = advance(*state, next(items), key, None)
            state = (new[0], new[1])
            return told

        return step

    resident, within = data.resident, unjitted_advance(job)
    assert resident is not None

    def several(state: Any, picks: Any) -> Any:
        def one(state: Any, indices: jax.Array) -> Any:
            training, sums = state
            return within(training, sums, Pick(resident, indices, None), key, None)[:2], None

        return lax.scan(one, state, picks)[0]

    call = jax.jit(several, donate_argnums=0)

    def steps() -> Any:
        nonlocal state
        picks: Any = [next(items) for _ in range(together)]
        state = call(state, jnp.stack([pick.indices for pick in picks]))
        return state[1]

    return steps


def plain(recipe: Recipe) -> Step:
    """A step as flax's examples write it, with images normalised before."""
    from experiments.benchmarks.plain_flax import FlaxNetwork, sgd_step

    like = published(recipe.model.name)
    assert isinstance(like, ResNet)
    model, optimizer = FlaxNetwork(like, recipe.model.dtype), optax.sgd(LR, MOMENTUM)
    images, labels = map(jnp.asarray, arrays(recipe))

    variables = jax.jit(model.init)(jax.random.key(0), images[:2])
    state = variables["params"], variables["batch_stats"], jax.jit(optimizer.init)(variables["params"])
    call = jax.jit(sgd_step(model, optimizer), donate_argnums=(0, 1, 2))

    def step() -> Any:
        nonlocal state
        *new, loss = call(*state, images, labels)
        state = (new[0], new[1], new[2])
        return loss

    return step


def in_torch(recipe: Recipe, *, compiled: bool) -> Step:
    """A step as PyTorch's examples write it, in channels_last, with images normalised before."""
    import torch
    from torch.nn import functional

    from experiments.benchmarks.plain_torch import TorchNetwork

    torch.backends.cudnn.benchmark = True
    like, device = published(recipe.model.name), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert isinstance(like, ResNet)
    network: Any = TorchNetwork(like)
    network = network.to(device, memory_format=torch.channels_last)
    network = torch.compile(network) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM)
    images, labels = (torch.from_numpy(x).to(device) for x in arrays(recipe))
    images, labels = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last), labels.long()
    half = recipe.model.dtype == "bfloat16"

    def step() -> Any:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def arrays(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """A batch of float32 images and its labels."""
    network, random = published(recipe.model.name), np.random.default_rng(0)
    images = random.standard_normal((recipe.batch_size, *network.input_shape), np.float32)
    return images, random.integers(0, network.num_classes, recipe.batch_size).astype(np.int32)


def made_up(recipe: Recipe) -> Any:
    """Train and test of random images as they are read from files."""
    network, random = published(recipe.model.name), np.random.default_rng(0)
    images = random.integers(0, 256, (HELD * recipe.batch_size, *network.input_shape), np.uint8)
    labels = np.arange(len(images)) % network.num_classes
    source = from_arrays(images, labels, list(map(str, range(network.num_classes))))
    return source, source


def work(recipe: Recipe, how: str) -> None:
    """A process that says that it is ready, and then for each line that it is given milliseconds a step."""
    torch_ways = {"torch": False, "torch_compiled": True}
    count = TOGETHER if how == "together" else 1
    if how in torch_ways:
        step = in_torch(recipe, compiled=torch_ways[how])
    else:
        conv = SpaceToDepthConv if how == "blocked" else Conv
        step = plain(recipe) if how == "plain" else ours(recipe, count, conv)
    start = time.perf_counter()
    wait(step())
    print(json.dumps({"first": time.perf_counter() - start}), flush=True)
    for _ in sys.stdin:
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            for _ in range(10 if count == 1 else 1):
                last = step()
            wait(last)
            steps += 10 if count == 1 else count
        print(json.dumps({"ms": 1e3 * (time.perf_counter() - start) / steps}), flush=True)


def wait(last: Any) -> None:
    """Until what a step returned is there: a number of torch's, or arrays of JAX's."""
    last.item() if hasattr(last, "backward") else jax.block_until_ready(last)


def start(arguments: argparse.Namespace, how: str, flags: str) -> Worker:
    words = [sys.executable, "-m", "experiments.benchmarks.gpu", arguments.network, "--batch", str(arguments.batch)]
    environment = os.environ | {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(
        [*words, "--worker", how],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return Worker(process, process.stdin, process.stdout)


def answer(worker: Worker) -> dict[str, float]:
    """What a way says next; raises RuntimeError with the last line of its errors where it has ended."""
    line = worker.told.readline()
    if line:
        found: dict[str, float] = json.loads(line)
        return found
    lines = worker.process.communicate()[1].strip().splitlines()
    raise RuntimeError(lines[-1][:120] if lines else f"ended with {worker.process.returncode}")


def compare(arguments: argparse.Namespace) -> dict[str, list[float] | str]:
    """Milliseconds a step of each way, round by round; or why there are none."""
    found: dict[str, list[float] | str] = {}
    open_ways: dict[str, Worker] = {}
    ends = time.monotonic() + 60 * arguments.minutes
    for name, (how, flags) in WAYS.items():
        if time.monotonic() > ends - 60:  # what is left is for the rounds
            found[name] = "not started, for want of time"
            continue
        worker = start(arguments, how, flags)
        try:
            print(f"{name}: first step after {answer(worker)['first']:.1f} s", file=sys.stderr)
            open_ways[name], found[name] = worker, []
        except RuntimeError as error:
            found[name] = str(error)
    for _ in range(arguments.rounds + 1):
        for name, worker in open_ways.items():
            if time.monotonic() < ends:
                print(file=worker.asked, flush=True)
                found[name].append(answer(worker)["ms"])  # type: ignore[union-attr]
    for worker in open_ways.values():
        worker.asked.close()
        worker.process.wait()
    return {name: times[1:] if isinstance(times, list) else times for name, times in found.items()}  # one warms up


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("network", choices=["resnet20", "resnet50"])
    parser.add_argument("--batch", type=script.positive, required=True)
    parser.add_argument("--rounds", type=script.positive, default=7)
    parser.add_argument("--minutes", type=script.above_zero, default=8.0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    recipe = dataclasses.replace(subject_of(arguments.network).recipe, batch_size=arguments.batch)
    if arguments.network == "resnet50":
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dtype="bfloat16"))
    if arguments.worker:
        return work(recipe, arguments.worker)
    found = compare(arguments)
    versions = ((name, importlib.metadata.version(name)) for name in ("jax", "flax"))
    print(", ".join(f"{name} {version}" for name, version in versions))
    print(f"{arguments.network}, batch {arguments.batch}, {recipe.model.dtype}, rounds of {SECONDS} s\n")
    print("| way | ms a step, median | least to most | images/s | of the first |\n|---|--:|--:|--:|--:|")
    first = found[next(iter(WAYS))]
    for name, times in found.items():
        if isinstance(times, str) or not times:
            print(f"| {name} | {times or 'no round in time'} | | | |")
            continue
        median = statistics.median(times)
        ratio = f"{median / statistics.median(first):.2f}" if first and not isinstance(first, str) else ""
        ends = f"{min(times):.2f} to {max(times):.2f}"
        print(f"| {name} | {median:.2f} | {ends} | {1e3 * arguments.batch / median:,.0f} | {ratio} |")
    return None


if __name__ == "__main__":
    script.run(main, large_pages=False)
