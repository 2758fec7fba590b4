"""Detectors on a CPU: backbone and heads beside torchvision's, and what post-processing adds to ours.

    python -m experiments.benchmarks.detection
    python -m experiments.benchmarks.detection fcos_resnet50_fpn --size 320 320

One image at a time. Each variant runs in a process of its own, and they take turns, as in cpu.py; the first third of a
turn is not counted. All have the same random parameters, under which all scores exceed the threshold, so that top-k and
suppression have as much to do as they can; their logits have to agree. torchvision's own post-processing is not
measured: its compiled operators do not load beside torch's CPU build. Needs torch and torchvision.
"""

import importlib.metadata
import multiprocessing
import os
import statistics
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import script
from experiments.benchmarks.cpu import LARGE_PAGES, cells, take_turn
from resnet_jax.models.detection.dense import DenseDetector
from resnet_jax.runtime.compilation_cache import enable_compilation_cache
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.weights.load import create_model
from resnet_jax.weights.names import abstract_variables, to_state_dict

NETWORKS = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn")
# Relative difference of the logits, which are sums over some fifty layers
TOLERANCE = 1e-3


class Problem(NamedTuple):
    """What all variants start with."""

    model: DenseDetector
    variables: Any
    image: np.ndarray
    """(1, h, w, 3) float32."""


def make_problem(name: str, size: tuple[int, int]) -> Problem:
    """Return a detector with random parameters and an image of noise, all drawn with numpy."""
    model, random = create_model(name, input_shape=(*size, 3)), np.random.default_rng(0)
    assert isinstance(model, DenseDetector)

    def draw(path: Any, leaf: Any) -> jax.Array:
        if path[-1].key != "kernel":
            return jnp.full(leaf.shape, path[-1].key in ("scale", "var"), jnp.float32)
        spread = np.sqrt(1 / np.prod(leaf.shape[:-1]))
        return jnp.asarray(spread * random.standard_normal(leaf.shape, np.float32))

    variables = jax.tree_util.tree_map_with_path(draw, abstract_variables(model))
    return Problem(model, variables, random.standard_normal((1, *size, 3), np.float32))


def ours(problem: Problem, detect: bool) -> Callable[[], Any]:
    """Return a call of the network, with or without its post-processing."""

    def run(variables: Any, image: jax.Array) -> Any:
        outputs: Any = problem.model.apply(variables, image)
        return outputs.detect() if detect else outputs

    x = jnp.asarray(problem.image)
    call = jax.jit(run, compiler_options=compiler_options()).lower(problem.variables, x).compile()
    return lambda: jax.block_until_ready(call(problem.variables, x))


def theirs(problem: Problem, name: str) -> Callable[[], Any]:
    """Return a call of backbone and heads of torchvision's network, with channels last."""
    import torch

    try:
        import torchvision
    except RuntimeError:
        # Beside another build of torch its operators are missing, of which none is called here
        operators = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    torch.set_num_threads(os.cpu_count() or 1)
    build = getattr(torchvision.models.detection, name)
    network = build(weights=None, weights_backbone=None, num_classes=problem.model.num_classes).eval()
    weights = to_state_dict(problem.model, problem.variables)
    state = {key: torch.tensor(np.array(value)) for key, value in weights.items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    wrong = [*unexpected, *(key for key in missing if not key.endswith("num_batches_tracked"))]
    assert not wrong, wrong
    network = network.to(memory_format=torch.channels_last)
    x = torch.from_numpy(problem.image).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def call() -> Any:
        with torch.inference_mode():
            return network.head(list(network.backbone(x).values()))

    return call


# How a call is made, and whether memory is requested in large pages
VARIANTS: dict[str, tuple[Callable[[Problem, str], Callable[[], Any]], bool]] = {
    "resnet_jax, backbone and heads": (lambda problem, name: ours(problem, detect=False), True),
    "resnet_jax, with post-processing": (lambda problem, name: ours(problem, detect=True), True),
    "torchvision, backbone and heads": (theirs, False),
    "torchvision, large pages": (theirs, True),
}
NETWORK, WHOLE, PEER, _ = VARIANTS


def logits_of(result: Any) -> np.ndarray | None:
    """Return the logits (n, k) of all anchors of an image; None for detections."""
    if isinstance(result, dict):
        return np.asarray(result["cls_logits"][0])
    return np.concatenate(result.logits, 1)[0] if hasattr(result, "logits") else None


def serve(variant: str, name: str, size: tuple[int, int], connection: Connection) -> None:
    """Serve a variant in its own process: send its logits, then the seconds of the calls of each turn."""
    enable_compilation_cache()
    call = VARIANTS[variant][0](make_problem(name, size), name)
    connection.send(logits_of(call()))
    while length := connection.recv():
        connection.send(take_turn(call, length))


def measure(name: str, size: tuple[int, int], rounds: int, length: float) -> dict[str, list[float]]:
    """Return the seconds of the calls of each variant."""
    context, opened, logits = multiprocessing.get_context("spawn"), {}, {}
    for variant, (_, large_pages) in VARIANTS.items():
        opened[variant], other = context.Pipe()
        # Read when a process starts
        os.environ["GLIBC_TUNABLES"] = LARGE_PAGES if large_pages else ""
        context.Process(target=serve, args=(variant, name, size, other), daemon=True).start()
        other.close()
        logits[variant] = opened[variant].recv()
    apart = np.abs(logits[NETWORK] - logits[PEER]).max() / np.abs(logits[PEER]).max()
    assert apart < TOLERANCE, f"logits differ by {apart:.1e}"
    seconds: dict[str, list[float]] = {variant: [] for variant in opened}
    for _ in range(rounds):
        for variant, connection in opened.items():
            connection.send(length)
            seconds[variant] += connection.recv()
    for connection in opened.values():
        connection.send(0)
    return seconds


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; the first by default")
    parser.add_argument("--size", type=script.positive, nargs=2, default=(480, 640), help="height and width")
    parser.add_argument("--rounds", type=script.positive, default=5)
    parser.add_argument("--seconds", type=script.above_zero, default=8, help="of a turn")
    options = parser.parse_args()
    if unknown := [name for name in options.networks if name not in NETWORKS]:
        parser.error(f"unknown network {unknown[0]}; choose of {', '.join(NETWORKS)}")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "torch", "torchvision")))
    height, width = options.size
    print(f"{os.cpu_count()} threads, one image of {width} x {height}, load {os.getloadavg()[0]:.1f}\n")
    print("| network | variant | against torchvision | ms | range |\n|---|---|--:|--:|--:|", flush=True)
    for name in options.networks or NETWORKS[:1]:
        seconds = measure(name, (height, width), options.rounds, options.seconds)
        for variant, found in seconds.items():
            print(f"| {' | '.join([name, variant, *cells(found, seconds[PEER])])} |", flush=True)
        part = 1 - statistics.median(seconds[NETWORK]) / statistics.median(seconds[WHOLE])
        print(f"\nPost-processing is {part:.1%} of our time. Load afterwards {os.getloadavg()[0]:.1f}.\n", flush=True)


if __name__ == "__main__":
    script.run(main, large_pages=False)
