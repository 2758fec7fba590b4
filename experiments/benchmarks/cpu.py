"""Training and evaluation on a CPU: this library, the same network in plain flax, and PyTorch, side by side.

    python -m experiments.benchmarks.cpu resnet50 --batch 8
    python -m experiments.benchmarks.cpu resnet20 --batch 128

Each variant runs in a process of its own, as its users would run it, and they take turns: while one runs the others
wait. All start with the same parameters, see the same images, use the same number of threads, and compute in float32;
their losses over the first steps have to agree. The first third of a turn is not counted, since the machine may have
reclaimed memory that was not in use. "resnet_jax" has large memory pages, as the `resnet-jax` command requests them.
Needs torch.
"""

import importlib.metadata
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen as nn
from torch.nn import functional

from experiments import script
from experiments.benchmarks.plain_flax import FlaxNetwork, sgd_step
from experiments.benchmarks.plain_torch import TorchNetwork
from resnet_jax.models.cpu_ops import cpu_kernels
from resnet_jax.models.resnet import ResNet
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.weights.load import create_model
from resnet_jax.weights.names import to_state_dict

LR, MOMENTUM = 1e-3, 0.9
# Tolerances: relative differences of the losses of the first steps. Rounding changes which ReLUs are active: the
# gradient of ResNet-50 for 8 images, with or without our kernels, is 2 to 3 % off that of float64, and later losses
# with it
TOLERANCES = (1e-4, 0.02, 0.02)
LARGE_PAGES = "glibc.malloc.hugetlb=1"


class Steps(NamedTuple):
    """The steps of a variant."""

    train: Callable[[], float]
    """Take a training step and return the loss before it."""
    evaluate: Callable[[], Any]


class Problem(NamedTuple):
    """What all variants start with."""

    model: ResNet
    variables: dict
    images: np.ndarray
    labels: np.ndarray


def make_problem(name: str, batch: int) -> Problem:
    """Return a published network, initial variables and a random batch."""
    model, random = create_model(name), np.random.default_rng(0)
    images = random.standard_normal((batch, *model.input_shape), np.float32)
    labels = random.integers(0, model.num_classes, batch)
    variables = jax.jit(model.init, compiler_options=compiler_options())(jax.random.key(0), images)
    return Problem(model, variables, images, labels)


def jax_steps(model: nn.Module, problem: Problem, options: dict, kernels: bool) -> Steps:
    """Return steps in JAX, compiled with these options, with or without our kernels."""
    optimizer, (x, y) = optax.sgd(LR, MOMENTUM), map(jnp.asarray, (problem.images, problem.labels))
    params, stats = (problem.variables[name] for name in ("params", "batch_stats"))
    state = [params, stats, optimizer.init(params)]
    with cpu_kernels(kernels):
        train = jax.jit(sgd_step(model, optimizer), donate_argnums=(0, 1, 2), compiler_options=options)
        step = train.lower(*state, x, y).compile()
        apply = jax.jit(model.apply, compiler_options=options)
        predict = apply.lower({"params": params, "batch_stats": stats}, x).compile()

    def train_once() -> float:
        *state[:], loss = step(*state, x, y)
        return float(loss)

    return Steps(train_once, lambda: jax.block_until_ready(predict({"params": state[0], "batch_stats": state[1]}, x)))


def torch_steps(problem: Problem, layout: Any) -> Steps:
    """Return steps in eager PyTorch, in a memory layout."""
    weights = to_state_dict(problem.model, problem.variables)
    network: Any = TorchNetwork(problem.model)
    network.load_state_dict({name: torch.tensor(np.array(x)) for name, x in weights.items()}, strict=False)
    network = network.to(memory_format=layout)
    x = torch.from_numpy(problem.images).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    target = torch.from_numpy(problem.labels.astype(np.int64))
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM)
    # As many as XLA uses
    torch.set_num_threads(os.cpu_count() or 1)

    def train_once() -> float:
        network.train()
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(x), target)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    def evaluate() -> None:
        network.eval()
        with torch.inference_mode():
            network(x)

    return Steps(train_once, evaluate)


# How steps are made, and whether memory is requested in large pages
VARIANTS: dict[str, tuple[Callable[[Problem], Steps], bool]] = {
    "resnet_jax": (lambda p: jax_steps(p.model, p, compiler_options(), True), True),
    "resnet_jax, small pages": (lambda p: jax_steps(p.model, p, compiler_options(), True), False),
    "resnet_jax, kernels off": (lambda p: jax_steps(p.model, p, compiler_options(), False), True),
    "flax, plain jit": (lambda p: jax_steps(FlaxNetwork(p.model), p, {}, False), False),
    "torch": (lambda p: torch_steps(p, torch.contiguous_format), False),
    "torch, channels_last": (lambda p: torch_steps(p, torch.channels_last), False),
    "torch, channels_last, large pages": (lambda p: torch_steps(p, torch.channels_last), True),
}
PEER = "torch, channels_last"


def serve(variant: str, name: str, batch: int, connection: Connection) -> None:
    """Serve a variant in its own process: send its first losses, then the step times of each turn."""
    steps = VARIANTS[variant][0](make_problem(name, batch))
    connection.send([steps.train() for _ in TOLERANCES])
    while length := connection.recv():
        connection.send([take_turn(step, length) for step in steps])


def take_turn(step: Callable[[], Any], length: float) -> list[float]:
    """Call a step for `length` seconds; return the seconds of each call after the first third, at least one."""
    found: list[float] = []
    turn_start = now = time.perf_counter()
    while not found or now - turn_start < length:
        start = now
        step()
        now = time.perf_counter()
        if start - turn_start > length / 3:
            found.append(now - start)
    return found


def open_variants(name: str, batch: int) -> dict[str, Connection]:
    """Start the processes one after the other and compare their first losses."""
    context, opened, losses = multiprocessing.get_context("spawn"), {}, {}
    for variant, (_, large) in VARIANTS.items():
        opened[variant], theirs = context.Pipe()
        # Read when a process starts
        os.environ["GLIBC_TUNABLES"] = LARGE_PAGES if large else ""
        context.Process(target=serve, args=(variant, name, batch, theirs), daemon=True).start()
        # Otherwise `recv` would wait for a process that has failed
        theirs.close()
        losses[variant] = opened[variant].recv()
    peer = losses[PEER]
    for variant, found in losses.items():
        agree = all(abs(a / b - 1) < limit for a, b, limit in zip(found, peer, TOLERANCES, strict=True))
        assert agree, (variant, found, peer)
    return opened


def measure(opened: dict[str, Connection], rounds: int, length: float) -> dict[str, tuple[list[float], list[float]]]:
    """Return the seconds of training and evaluation steps of each variant, measured in turns."""
    found: dict[str, tuple[list[float], list[float]]] = {variant: ([], []) for variant in opened}
    for _ in range(rounds):
        for variant, connection in opened.items():
            connection.send(length)
            for kept, more in zip(found[variant], connection.recv(), strict=True):
                kept += more
    for connection in opened.values():
        # No more turns
        connection.send(0)
    return found


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("network", choices=["resnet20", "resnet50"])
    parser.add_argument("--batch", type=script.positive, required=True)
    parser.add_argument("--rounds", type=script.positive, default=7)
    parser.add_argument("--seconds", type=script.above_zero, default=4, help="of a turn of training or evaluation")
    options = parser.parse_args()
    found = measure(open_variants(options.network, options.batch), options.rounds, options.seconds)
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "torch")))
    print(f"{options.network}, batch {options.batch}, {os.cpu_count()} threads, {options.rounds} rounds\n")
    print("| variant | training ms | range | of channels_last | evaluation ms | range | of channels_last |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    peers = [statistics.median(each) for each in found[PEER]]
    for variant, both in found.items():
        cells = []
        for each, peer in zip(both, peers, strict=True):
            ms, median = sorted(1e3 * x for x in each), statistics.median(each)
            cells += [f"{1e3 * median:.0f}", f"{ms[0]:.0f} to {ms[-1]:.0f}", f"{median / peer:.2f}"]
        print(f"| {variant} | {' | '.join(cells)} |")


if __name__ == "__main__":
    script.run(main, large_pages=False)
