"""Our ONNX files in onnxruntime, against those that torch.onnx writes of the same network with the same weights.

    python -m experiments.benchmarks.onnx_files

Both are sessions of two threads in one process and take turns; a ratio is that of the medians of one turn. Needs torch,
onnx, onnxruntime and onnxscript.
"""

import importlib.metadata
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from experiments import script
from experiments.benchmarks.cpu import Case, Problem, make_problem
from experiments.benchmarks.plain_torch import torch_network
from resnet_jax import WeightsInfo, export
from resnet_jax.weights.names import to_state_dict
from resnet_jax.weights.tensors import write_tensors

CASES = [Case("resnet20", 1, 32), Case("resnet20", 8, 32), Case("resnet50", 1, 224), Case("resnet50", 8, 224)]


def write_both(problem: Problem, name: str, size: int, folder: Path) -> tuple[Path, Path]:
    """Write a network with the same weights by this library and by PyTorch."""
    tensors = {key: np.array(value) for key, value in to_state_dict(problem.model, problem.variables).items()}
    weights, ours, theirs = folder / "weights.safetensors", folder / "ours.onnx", folder / "theirs.onnx"
    write_tensors(weights, tensors)
    export(weights, ours, weights=WeightsInfo(model=name, image_size=size, mean=(0.0,) * 3, std=(1.0,) * 3))
    network = torch_network(problem.model)
    network.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()}, strict=False)
    images = torch.from_numpy(problem.images.transpose(0, 3, 1, 2).copy())
    axes = {0: torch.export.Dim("batch")} if len(images) > 1 else None
    dynamic: Any = {"dynamic_shapes": (axes,)} if axes else {}
    torch.onnx.export(network.eval(), (images,), theirs, dynamo=True, verbose=False, **dynamic)
    return ours, theirs


def runner(file: Path, images: np.ndarray) -> Callable[[], Any]:
    """Return a call of a file on images (n, c, h, w)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: images}
    return lambda: session.run(None, inputs)[0]


def take_turn(call: Callable[[], Any], seconds: float) -> float:
    """Return the median time of a call, repeated for so long, in seconds."""
    found: list[float] = []
    start = time.perf_counter()
    while not found or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--rounds", type=script.positive, default=7)
    parser.add_argument("--seconds", type=script.above_zero, default=2, help="of a turn")
    options = parser.parse_args()
    packages = ("jax", "torch", "onnx", "onnxruntime", "onnxscript")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages))
    print(f"{os.cpu_count()} threads, {options.rounds} rounds of {options.seconds} s, load {os.getloadavg()[0]:.1f}\n")
    print("| network | images | ours / PyTorch's, median | range | ms, ours | nodes, ours and PyTorch's |")
    print("|---|--:|--:|--:|--:|--:|")
    for case in CASES:
        problem = make_problem(case)
        with tempfile.TemporaryDirectory() as folder:
            files = write_both(problem, case.network, case.size, Path(folder))
            images = np.ascontiguousarray(problem.images.transpose(0, 3, 1, 2))
            ours, theirs = (runner(file, images) for file in files)
            nodes = [len(onnx.load(file).graph.node) for file in files]
            np.testing.assert_allclose(ours(), theirs(), rtol=1e-3, atol=1e-3 * float(np.abs(theirs()).max()))
            turns = [
                (take_turn(ours, options.seconds), take_turn(theirs, options.seconds)) for _ in range(options.rounds)
            ]
        ratios = sorted(a / b for a, b in turns)
        ms = 1e3 * statistics.median(a for a, _ in turns)
        print(
            f"| {case.network} | {case.batch} | {statistics.median(ratios):.3f} | {ratios[0]:.3f} to {ratios[-1]:.3f}"
            f" | {ms:.2f} | {nodes[0]}, {nodes[1]} |",
            flush=True,
        )


if __name__ == "__main__":
    script.run(main, large_pages=False)
