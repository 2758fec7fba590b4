"""Training and evaluation on a CPU: this library, the same network in plain flax, and PyTorch, side by side.

    python -m experiments.benchmarks.cpu resnet50 --batch 8
    python -m experiments.benchmarks.cpu resnet20 --batch 128

Ways alternate round by round in one process, on the same images and with the same number of threads, in float32; all
begin with the same parameters, and their losses over the first steps have to agree. Needs torch.
"""

import argparse
import importlib.metadata
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen as nn
from torch.nn import functional

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


class Way(NamedTuple):
    """A step of training, which returns the loss before it, and one of evaluation."""

    train: Callable[[], float]
    evaluate: Callable[[], Any]


def jax_way(
    model: nn.Module, variables: dict, images: np.ndarray, labels: np.ndarray, options: dict, fast: bool
) -> Way:
    """A way in JAX, compiled with these options, with our kernels or without."""
    optimizer, (x, y) = optax.sgd(LR, MOMENTUM), map(jnp.asarray, (images, labels))
    params, stats = jax.tree.map(jnp.array, (variables["params"], variables["batch_stats"]))
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


def torch_way(like: ResNet, weights: dict, images: np.ndarray, labels: np.ndarray, layout: Any) -> Way:
    """A way in PyTorch, run eagerly, in a layout of memory."""
    network: Any = TorchNetwork(like)
    network.load_state_dict({name: torch.tensor(np.array(x)) for name, x in weights.items()}, strict=False)
    network = network.to(memory_format=layout)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    target = torch.from_numpy(labels.astype(np.int64))
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM)

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


def ways(name: str, batch: int) -> dict[str, Way]:
    """What is compared, all with the same parameters and images."""
    model, random = published(name), np.random.default_rng(0)
    images = random.standard_normal((batch, *model.input_shape), np.float32)
    labels = random.integers(0, model.num_classes, batch)
    options = compiler_options()
    variables = jax.jit(model.init, compiler_options=options)(jax.random.key(0), images)
    weights = to_state_dict(model, variables)
    given = variables, images, labels
    return {
        "resnet_jax": jax_way(model, *given, options, True),
        "resnet_jax, kernels off": jax_way(model, *given, options, False),
        "flax, plain jit": jax_way(FlaxNetwork(model), *given, {}, False),
        "torch": torch_way(model, weights, images, labels, torch.contiguous_format),
        "torch, channels_last": torch_way(model, weights, images, labels, torch.channels_last),
    }


def measure(compared: dict[str, Way], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of training and evaluation, after the steps in which the losses are compared."""
    losses = {name: [way.train() for _ in AGREED] for name, way in compared.items()}
    first = next(iter(losses.values()))
    for name, found in losses.items():
        assert all(abs(a / b - 1) < most for a, b, most in zip(found, first, AGREED, strict=True)), (name, found, first)
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in compared}
    for number in range(rounds + 1):
        for name, way in compared.items():
            for kept, call in zip(seconds[name], (way.train, way.evaluate), strict=True):
                start = time.perf_counter()
                call()
                if number:  # the first round warms up
                    kept.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["resnet20", "resnet50"])
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)  # as many as XLA takes
    seconds = measure(ways(options.network, options.batch), options.rounds)
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "torch")))
    print(f"{options.network}, batch {options.batch}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    print(f"largest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB\n")
    print("| way | training ms | least to most | of channels_last | evaluation ms | least to most | of channels_last |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    peers = [statistics.median(found) for found in seconds["torch, channels_last"]]
    for name, both in seconds.items():
        cells = []
        for found, peer in zip(both, peers, strict=True):
            ms, median = sorted(1e3 * x for x in found), statistics.median(found)
            cells += [f"{1e3 * median:.0f}", f"{ms[0]:.0f} to {ms[-1]:.0f}", f"{median / peer:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
