"""Training and evaluation on a CPU: this library, the same network in plain flax, and PyTorch, side by side.

    python -m experiments.benchmarks.cpu resnet50 --batch 8
    python -m experiments.benchmarks.cpu resnet20 --batch 128

Each way has a process of its own, as its users would have it, and they take turns: while one is at work the others
wait. All begin with the same parameters, see the same images, use as many threads, and compute in float32; their losses
over the first steps have to agree. The first third of a turn is not counted, for a machine may have taken back what
memory was not in use. "resnet_jax" has large pages, as the `resnet-jax` command asks for them. Needs torch.
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
from resnet_jax.backend import compiler_options
from resnet_jax.model import kernels
from resnet_jax.model.resnet import ResNet
from resnet_jax.model.zoo import published
from resnet_jax.weights.names import to_state_dict

LR, MOMENTUM = 1e-3, 0.9
# Relative differences of the losses of the first steps. Rounding changes which ReLUs are open: the gradient of
# ResNet-50 for 8 images, with our formulas or without, is 2 to 3 % off that of float64, and later losses with it.
AGREED = (1e-4, 0.02, 0.02)
LARGE_PAGES = "glibc.malloc.hugetlb=1"


class Way(NamedTuple):
    """A step of training, which returns the loss before it, and one of evaluation."""

    train: Callable[[], float]
    evaluate: Callable[[], Any]


class Given(NamedTuple):
    """What all ways begin with."""

    model: ResNet
    variables: dict
    images: np.ndarray
    labels: np.ndarray


def beginning(name: str, batch: int) -> Given:
    model, random = published(name), np.random.default_rng(0)
    images = random.standard_normal((batch, *model.input_shape), np.float32)
    labels = random.integers(0, model.num_classes, batch)
    variables = jax.jit(model.init, compiler_options=compiler_options())(jax.random.key(0), images)
    return Given(model, variables, images, labels)


def jax_way(model: nn.Module, given: Given, options: dict, fast: bool) -> Way:
    """A way in JAX, compiled with these options, with our kernels or without."""
    optimizer, (x, y) = optax.sgd(LR, MOMENTUM), map(jnp.asarray, (given.images, given.labels))
    params, stats = (given.variables[name] for name in ("params", "batch_stats"))
    state = [params, stats, optimizer.init(params)]
    with kernels.using(fast):
        train = jax.jit(sgd_step(model, optimizer), donate_argnums=(0, 1, 2), compiler_options=options)
        step = train.lower(*state, x, y).compile()
        apply = jax.jit(model.apply, compiler_options=options)
        answer = apply.lower({"params": params, "batch_stats": stats}, x).compile()

    def once() -> float:
        *state[:], loss = step(*state, x, y)
        return float(loss)

    return Way(once, lambda: jax.block_until_ready(answer({"params": state[0], "batch_stats": state[1]}, x)))


def torch_way(given: Given, layout: Any) -> Way:
    """A way in PyTorch, run eagerly, in a layout of memory."""
    weights = to_state_dict(given.model, given.variables)
    network: Any = TorchNetwork(given.model)
    network.load_state_dict({name: torch.tensor(np.array(x)) for name, x in weights.items()}, strict=False)
    network = network.to(memory_format=layout)
    x = torch.from_numpy(given.images).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    target = torch.from_numpy(given.labels.astype(np.int64))
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM)
    torch.set_num_threads(os.cpu_count() or 1)  # as many as XLA takes

    def once() -> float:
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

    return Way(once, evaluate)


WAYS: dict[str, tuple[Callable[[Given], Way], bool]] = {  # and whether memory is asked for in large pages
    "resnet_jax": (lambda given: jax_way(given.model, given, compiler_options(), True), True),
    "resnet_jax, small pages": (lambda given: jax_way(given.model, given, compiler_options(), True), False),
    "resnet_jax, kernels off": (lambda given: jax_way(given.model, given, compiler_options(), False), True),
    "flax, plain jit": (lambda given: jax_way(FlaxNetwork(given.model), given, {}, False), False),
    "torch": (lambda given: torch_way(given, torch.contiguous_format), False),
    "torch, channels_last": (lambda given: torch_way(given, torch.channels_last), False),
    "torch, channels_last, large pages": (lambda given: torch_way(given, torch.channels_last), True),
}
PEER = "torch, channels_last"


def serve(way: str, name: str, batch: int, connection: Connection) -> None:
    """In a process of its own: first the losses, and then, for each length of a turn sent, how long each call took."""
    calls = WAYS[way][0](beginning(name, batch))
    connection.send([calls.train() for _ in AGREED])
    while length := connection.recv():
        connection.send([turn(call, length) for call in calls])


def turn(call: Callable[[], Any], length: float) -> list[float]:
    """Seconds of each call within so many seconds, but for the first third of them; of one at least."""
    found: list[float] = []
    begun = now = time.perf_counter()
    while not found or now - begun < length:
        start = now
        call()
        now = time.perf_counter()
        if start - begun > length / 3:
            found.append(now - start)
    return found


def open_ways(name: str, batch: int) -> dict[str, Connection]:
    """Starts the processes one after the other, and compares their first losses."""
    context, opened, losses = multiprocessing.get_context("spawn"), {}, {}
    for way, (_, large) in WAYS.items():
        opened[way], theirs = context.Pipe()
        os.environ["GLIBC_TUNABLES"] = LARGE_PAGES if large else ""  # read as a process starts
        context.Process(target=serve, args=(way, name, batch, theirs), daemon=True).start()
        theirs.close()  # or else one that fails would be waited for
        losses[way] = opened[way].recv()
    first = losses[PEER]
    for way, found in losses.items():
        assert all(abs(a / b - 1) < most for a, b, most in zip(found, first, AGREED, strict=True)), (way, found, first)
    return opened


def measure(opened: dict[str, Connection], rounds: int, length: float) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of training and evaluation of each way, in turns."""
    found: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in opened}
    for _ in range(rounds):
        for way, connection in opened.items():
            connection.send(length)
            for kept, more in zip(found[way], connection.recv(), strict=True):
                kept += more
    for connection in opened.values():
        connection.send(0)  # no more turns
    return found


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("network", choices=["resnet20", "resnet50"])
    parser.add_argument("--batch", type=script.positive, required=True)
    parser.add_argument("--rounds", type=script.positive, default=7)
    parser.add_argument(
        "--seconds", type=script.above_zero, default=4, help="of a turn, in each of which a way trains and evaluates"
    )
    options = parser.parse_args()
    found = measure(open_ways(options.network, options.batch), options.rounds, options.seconds)
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "torch")))
    print(f"{options.network}, batch {options.batch}, {os.cpu_count()} threads, {options.rounds} rounds\n")
    print("| way | training ms | least to most | of channels_last | evaluation ms | least to most | of channels_last |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    peers = [statistics.median(each) for each in found[PEER]]
    for way, both in found.items():
        cells = []
        for each, peer in zip(both, peers, strict=True):
            ms, median = sorted(1e3 * x for x in each), statistics.median(each)
            cells += [f"{1e3 * median:.0f}", f"{ms[0]:.0f} to {ms[-1]:.0f}", f"{median / peer:.2f}"]
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    script.run(main, large_pages=False)
