"""Training on a GPU: this library, options of its compiler, the same network in plain flax, and PyTorch, side by side.

    python -m experiments.benchmarks.gpu resnet50 --batch 256
    python -m experiments.benchmarks.gpu resnet20 --batch 128

Every variant runs in a process of its own, because JAX reads compiler options when it starts; all stay open and take
turns. Computes in bfloat16 (ResNet-50) or float32 (ResNet-20) on images that are already on the device. Torch runs in
channels_last, under autocast for bfloat16, eager and compiled. A variant that fails, or an option that XLA does not
know, is a row that says so. Needs torch with CUDA for its rows; takes at most eight minutes (`--minutes`).
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
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments import script
from resnet_jax.data.source import Source, from_arrays
from resnet_jax.input_pipeline.device_input import IndexedBatch, open_device_split, training_batches
from resnet_jax.models.layers import Conv, SpaceToDepthConv
from resnet_jax.models.resnet import ResNet
from resnet_jax.recipe import Recipe
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.tools.bench.step import bench_target
from resnet_jax.training.init import init_train_state, shardings
from resnet_jax.training.make_step import make_train_step, step_key
from resnet_jax.training.setup import make_setup
from resnet_jax.training.sources import open_sources
from resnet_jax.weights.load import create_model

LR, MOMENTUM = 0.01, 0.9
# Batches that lie on the device
BATCHES = 2
# Seconds of a round
SECONDS = 1.5
# Steps per call of the variant that scans over steps
SCANNED = 50

# name: (how a step is made, XLA_FLAGS)
VARIANTS: dict[str, tuple[str, str]] = {
    "resnet_jax": ("ours", ""),
    "flax, plain": ("plain", ""),
    "torch": ("torch", ""),
    "torch, compiled": ("torch_compiled", ""),
    f"resnet_jax, {SCANNED} steps per call": ("scanned", ""),
    "resnet_jax, stem by space to depth": ("space_to_depth", ""),
    "resnet_jax, fused convolutions": ("ours", "--xla_gpu_experimental_enable_conv_fusion=true"),
    "resnet_jax, NHWC forced": ("ours", "--xla_gpu_force_conv_nhwc=true"),
    "resnet_jax, cuDNN fusion level 2": ("ours", "--xla_gpu_cudnn_gemm_fusion_level=2"),
    "resnet_jax, no command buffers": ("ours", "--xla_gpu_enable_command_buffer="),
    "resnet_jax, no autotuning": ("ours", "--xla_gpu_autotune_level=0"),
}

# Takes one step, or `SCANNED`, and returns an array that is ready when it is done
Step = Callable[[], Any]


class Worker(NamedTuple):
    """The process of a variant, waiting for a round."""

    process: subprocess.Popen[str]
    requests: IO[str]
    replies: IO[str]


def our_step(recipe: Recipe, scanned: int = 1, conv: type[Conv] = Conv) -> Step:
    """Return the step of `resnet-jax train`, on images that lie on the device.

    Args:
        recipe: of the training.
        scanned: steps per call.
        conv: convolution of the network.
    """
    sources = open_sources(recipe, Path("data"), random_sources(recipe))
    setup = make_setup(recipe, sources.dataset, 1)
    setup = setup._replace(model=setup.model.clone(conv=conv))
    state, split, key = init_train_state(setup), open_device_split(sources.train, setup.mesh), step_key(setup)
    batches = training_batches(split, recipe, range(10**9))
    if scanned == 1:
        train_step = make_train_step(setup)

        def step() -> Any:
            nonlocal state
            state, sums = train_step(state, next(batches), key)
            return sums

        return step

    arrays, inner = split.arrays, make_train_step(setup, jit=False)
    assert arrays is not None

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings(setup), None), compiler_options=compiler_options())
    def scan_steps(state: Any, indices: Any) -> Any:
        return lax.scan(lambda state, one: inner(state, IndexedBatch(arrays, one, None), key), state, indices)

    def steps() -> Any:
        nonlocal state
        inputs: Any = [next(batches) for _ in range(scanned)]
        state, sums = scan_steps(state, jnp.stack([batch.indices for batch in inputs]))
        return sums

    return steps


def plain_step(recipe: Recipe) -> Step:
    """Return a step as in flax's examples, on normalised images."""
    from experiments.benchmarks.plain_flax import FlaxNetwork, sgd_step

    like = create_model(recipe.model.name)
    assert isinstance(like, ResNet)
    model, optimizer = FlaxNetwork(like, recipe.model.dtype), optax.sgd(LR, MOMENTUM)
    images, labels = map(jnp.asarray, random_batch(recipe))

    variables = jax.jit(model.init)(jax.random.key(0), images[:2])
    state = variables["params"], variables["batch_stats"], jax.jit(optimizer.init)(variables["params"])
    call = jax.jit(sgd_step(model, optimizer), donate_argnums=(0, 1, 2))

    def step() -> Any:
        nonlocal state
        *new, loss = call(*state, images, labels)
        state = (new[0], new[1], new[2])
        return loss

    return step


def torch_step(recipe: Recipe, *, compiled: bool) -> Step:
    """Return a step as in PyTorch's examples, in channels_last, on normalised images."""
    import torch
    from torch.nn import functional

    from experiments.benchmarks.plain_torch import TorchNetwork

    torch.backends.cudnn.benchmark = True
    like, device = create_model(recipe.model.name), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert isinstance(like, ResNet)
    network: Any = TorchNetwork(like)
    network = network.to(device, memory_format=torch.channels_last)
    network = torch.compile(network) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM)
    images, labels = (torch.from_numpy(x).to(device) for x in random_batch(recipe))
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


def random_batch(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch of float32 images and its labels."""
    network, random = create_model(recipe.model.name), np.random.default_rng(0)
    images = random.standard_normal((recipe.batch_size, *network.input_shape), np.float32)
    return images, random.integers(0, network.num_classes, recipe.batch_size).astype(np.int32)


def random_sources(recipe: Recipe) -> tuple[Source, Source]:
    """Return train and test splits of random uint8 images."""
    network, random = create_model(recipe.model.name), np.random.default_rng(0)
    images = random.integers(0, 256, (BATCHES * recipe.batch_size, *network.input_shape), np.uint8)
    labels = np.arange(len(images)) % network.num_classes
    source = from_arrays(images, labels, list(map(str, range(network.num_classes))))
    return source, source


def work(recipe: Recipe, kind: str) -> None:
    """Print the time of the first step and then, for each line of stdin, the milliseconds per step of a round."""
    compiled = {"torch": False, "torch_compiled": True}
    count = SCANNED if kind == "scanned" else 1
    if kind in compiled:
        step = torch_step(recipe, compiled=compiled[kind])
    else:
        conv = SpaceToDepthConv if kind == "space_to_depth" else Conv
        step = plain_step(recipe) if kind == "plain" else our_step(recipe, count, conv)
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
    """Wait for the loss of a torch step, or the arrays of a JAX step."""
    last.item() if hasattr(last, "backward") else jax.block_until_ready(last)


def start_worker(arguments: argparse.Namespace, kind: str, flags: str) -> Worker:
    """Start the process of a variant."""
    words = [sys.executable, "-m", "experiments.benchmarks.gpu", arguments.network, "--batch", str(arguments.batch)]
    environment = os.environ | {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = subprocess.Popen(
        [*words, "--worker", kind],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return Worker(process, process.stdin, process.stdout)


def read_reply(worker: Worker) -> dict[str, float]:
    """Return the next reply of a worker; raise RuntimeError with its last line of stderr if it has exited."""
    line = worker.replies.readline()
    if line:
        found: dict[str, float] = json.loads(line)
        return found
    lines = worker.process.communicate()[1].strip().splitlines()
    raise RuntimeError(lines[-1][:120] if lines else f"exited with code {worker.process.returncode}")


def compare(arguments: argparse.Namespace) -> dict[str, list[float] | str]:
    """Return the milliseconds per step of each variant, round by round, or why there are none."""
    found: dict[str, list[float] | str] = {}
    workers: dict[str, Worker] = {}
    deadline = time.monotonic() + 60 * arguments.minutes
    for name, (kind, flags) in VARIANTS.items():
        # The last minute is for the rounds
        if time.monotonic() > deadline - 60:
            found[name] = "not started: no time left"
            continue
        worker = start_worker(arguments, kind, flags)
        try:
            print(f"{name}: first step after {read_reply(worker)['first']:.1f} s", file=sys.stderr)
            workers[name], found[name] = worker, []
        except RuntimeError as error:
            found[name] = str(error)
    for _ in range(arguments.rounds + 1):
        for name, worker in workers.items():
            if time.monotonic() < deadline:
                print(file=worker.requests, flush=True)
                found[name].append(read_reply(worker)["ms"])  # type: ignore[union-attr]
    for worker in workers.values():
        worker.requests.close()
        worker.process.wait()
    # The first round warms up
    return {name: times[1:] if isinstance(times, list) else times for name, times in found.items()}


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("network", choices=["resnet20", "resnet50"])
    parser.add_argument("--batch", type=script.positive, required=True)
    parser.add_argument("--rounds", type=script.positive, default=7)
    parser.add_argument("--minutes", type=script.above_zero, default=8.0)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    recipe = dataclasses.replace(bench_target(arguments.network).recipe, batch_size=arguments.batch)
    if arguments.network == "resnet50":
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dtype="bfloat16"))
    if arguments.worker:
        return work(recipe, arguments.worker)
    found = compare(arguments)
    versions = ((name, importlib.metadata.version(name)) for name in ("jax", "flax"))
    print(", ".join(f"{name} {version}" for name, version in versions))
    print(f"{arguments.network}, batch {arguments.batch}, {recipe.model.dtype}, rounds of {SECONDS} s\n")
    print("| variant | ms per step, median | range | images/s | of the first |\n|---|--:|--:|--:|--:|")
    first = found[next(iter(VARIANTS))]
    for name, times in found.items():
        if isinstance(times, str) or not times:
            print(f"| {name} | {times or 'no round finished'} | | | |")
            continue
        median = statistics.median(times)
        ratio = f"{median / statistics.median(first):.2f}" if first and not isinstance(first, str) else ""
        ends = f"{min(times):.2f} to {max(times):.2f}"
        print(f"| {name} | {median:.2f} | {ends} | {1e3 * arguments.batch / median:,.0f} | {ratio} |")
    return None


if __name__ == "__main__":
    script.run(main, large_pages=False)
