"""Training and evaluation on a CPU: this library, the same network in plain flax, and PyTorch, side by side.

    python -m experiments.benchmarks.cpu
    python -m experiments.benchmarks.cpu resnet50 --variants resnet_jax "flax, plain jit" "torch, channels_last"

Each variant runs in a process of its own, as its users would run it, and they take turns: while one runs the others
wait. All start with the same parameters, see the same images, use the same number of threads, and compute in float32;
their losses over the first steps have to agree. The first third of a turn is not counted, since the machine may have
reclaimed memory that was not in use. "resnet_jax" has large memory pages, as the `resnet-jax` command requests them.
Peak memory is what a process had at most, compiling included, beyond what it had after its imports. Needs torch.
"""

import importlib.metadata
import math
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
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
from experiments.benchmarks.plain_torch import torch_network
from resnet_jax.models import cpu_conv3x3
from resnet_jax.models.cpu_ops import cpu_kernels
from resnet_jax.models.resnet import ResNet
from resnet_jax.runtime.compilation_cache import enable_compilation_cache
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.network import require_resnet
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
    variables: dict[str, Any]
    images: np.ndarray
    labels: np.ndarray


class Case(NamedTuple):
    """A network, its batch and the size of its images."""

    network: str
    batch: int
    size: int


CASES = {
    "resnet20": Case("resnet20", 128, 32),
    "resnet50": Case("resnet50", 8, 224),
    "resnet18-32": Case("resnet18", 128, 32),
    "resnet18-64": Case("resnet18", 64, 64),
    "wrn_16_8": Case("wrn_16_8", 16, 32),
}


def make_problem(case: Case) -> Problem:
    """Return a published network, parameters and a random batch, all drawn with numpy: nothing is compiled."""
    model, random = require_resnet(create_model(case.network), "this comparison"), np.random.default_rng(0)
    images = random.standard_normal((case.batch, case.size, case.size, 3), np.float32)
    labels = random.integers(0, model.num_classes, case.batch)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = path[-1].key
        if name != "kernel":
            return jnp.full(leaf.shape, name in ("scale", "var"), jnp.float32)
        spread = math.sqrt(2 / math.prod(leaf.shape[:-1]))
        return jnp.asarray(spread * random.standard_normal(leaf.shape, np.float32))

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return Problem(model, jax.tree_util.tree_map_with_path(draw, shapes), images, labels)


def jax_steps(model: nn.Module, problem: Problem, options: dict[str, Any], kernels: bool) -> Steps:
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
    network: Any = torch_network(problem.model)
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


def without_machine_code(problem: Problem) -> Steps:
    """Return our steps as they are if llvmlite is not installed."""
    cpu_conv3x3.machine_code = lambda: None  # type: ignore[assignment]
    return jax_steps(problem.model, problem, compiler_options(), True)


# How steps are made, and whether memory is requested in large pages
VARIANTS: dict[str, tuple[Callable[[Problem], Steps], bool]] = {
    "resnet_jax": (lambda p: jax_steps(p.model, p, compiler_options(), True), True),
    "resnet_jax, without llvmlite": (without_machine_code, True),
    "resnet_jax, small pages": (lambda p: jax_steps(p.model, p, compiler_options(), True), False),
    "resnet_jax, kernels off": (lambda p: jax_steps(p.model, p, compiler_options(), False), True),
    "flax, plain jit": (lambda p: jax_steps(FlaxNetwork(p.model), p, {}, False), False),
    "torch": (lambda p: torch_steps(p, torch.contiguous_format), False),
    "torch, channels_last": (lambda p: torch_steps(p, torch.channels_last), False),
    "torch, channels_last, large pages": (lambda p: torch_steps(p, torch.channels_last), True),
}
PEER = "torch, channels_last"
MAIN = ["resnet_jax", "resnet_jax, without llvmlite", PEER]


def serve(variant: str, case: Case, connection: Connection) -> None:
    """Serve a variant in its own process: send its first losses, the step times of each turn, its peak memory."""
    imported = peak_memory()
    enable_compilation_cache()
    steps = VARIANTS[variant][0](make_problem(case))
    connection.send([steps.train() for _ in TOLERANCES])
    while length := connection.recv():
        connection.send([take_turn(step, length) for step in steps])
    connection.send(peak_memory() - imported)


def peak_memory() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


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


def open_variants(case: Case, variants: list[str]) -> dict[str, Connection]:
    """Start the processes one after the other and compare their first losses."""
    context, opened, losses = multiprocessing.get_context("spawn"), {}, {}
    for variant in variants:
        opened[variant], theirs = context.Pipe()
        # Read when a process starts
        os.environ["GLIBC_TUNABLES"] = LARGE_PAGES if VARIANTS[variant][1] else ""
        context.Process(target=serve, args=(variant, case, theirs), daemon=True).start()
        # Otherwise `recv` would wait for a process that has failed
        theirs.close()
        losses[variant] = opened[variant].recv()
    for variant, found in losses.items():
        agree = all(abs(a / b - 1) < limit for a, b, limit in zip(found, losses[PEER], TOLERANCES, strict=True))
        assert agree, (variant, found, losses[PEER])
    return opened


class Found(NamedTuple):
    """What was measured of a variant: seconds of each step, and MB."""

    train: list[float]
    evaluate: list[float]
    memory: float


def measure(opened: dict[str, Connection], rounds: int, length: float) -> dict[str, Found]:
    """Return what was measured of each variant, in turns."""
    seconds: dict[str, tuple[list[float], list[float]]] = {variant: ([], []) for variant in opened}
    for _ in range(rounds):
        for variant, connection in opened.items():
            connection.send(length)
            for kept, more in zip(seconds[variant], connection.recv(), strict=True):
                kept += more
    found = {}
    for variant, connection in opened.items():
        # No more turns
        connection.send(0)
        found[variant] = Found(*seconds[variant], connection.recv())
    return found


def cells(seconds: list[float], peer: list[float]) -> list[str]:
    """Return the ratio to the peer, the median and the range, in ms."""
    ms, ratio = sorted(1e3 * x for x in seconds), statistics.median(peer) / statistics.median(seconds)
    said = f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"
    return ["1.00" if seconds is peer else said, f"{statistics.median(ms):.1f}", f"{ms[0]:.1f} to {ms[-1]:.1f}"]


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=MAIN)
    parser.add_argument("--rounds", type=script.positive, default=3)
    parser.add_argument("--seconds", type=script.above_zero, default=2, help="of a turn of training or evaluation")
    options = parser.parse_args()
    unknown = [name for name in options.networks if name not in CASES]
    if unknown:
        parser.error(f"unknown network {unknown[0]}; choose of {', '.join(CASES)}")
    packages = ["jax", "jaxlib", "flax", "torch", *(["llvmlite"] if find_spec("llvmlite") else [])]
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))
    print(f"{os.cpu_count()} threads, {options.rounds} rounds of {options.seconds} s, load {os.getloadavg()[0]:.1f}\n")
    print("| network | variant | training | ms | range | evaluation | ms | range | peak MB |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for name in options.networks or CASES:
        variants = list(dict.fromkeys([*options.variants, PEER]))
        found = measure(open_variants(CASES[name], variants), options.rounds, options.seconds)
        label = f"{CASES[name].network}, {CASES[name].batch} of {CASES[name].size} px"
        for variant, (train, evaluate, memory) in found.items():
            row = [
                label,
                variant,
                *cells(train, found[PEER].train),
                *cells(evaluate, found[PEER].evaluate),
                f"{memory:.0f}",
            ]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    script.run(main, large_pages=False)
