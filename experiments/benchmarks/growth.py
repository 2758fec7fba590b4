"""What a step of training costs as work grows: images a step, layers, pixels, and devices.

    python -m experiments.benchmarks.growth

Times the very step that trains on the processor at hand, and counts how often a step for 1 to 8 (virtual) devices makes
them meet. Writes the figures as tables and draws growth.png into experiments/pictures.
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from experiments import script
from resnet_jax.bench.step import Bounds, measure_step, subject_of
from resnet_jax.preflight import abstract_batch
from resnet_jax.train.compiled import collectives
from resnet_jax.train.directory import Dataset
from resnet_jax.train.job import abstract, make_advance, prepare, step_key

PICTURE = Path("experiments/pictures/growth.png")
BATCHES = (8, 16, 32, 64, 128, 256)
DEPTHS = (20, 32, 44, 56, 110)
SIZES = (32, 64, 96, 128, 192, 224)
DEVICES = (1, 2, 4, 8)
GROUP = 8  # images that BatchNorm takes together, where it does not take the whole batch

Points = dict[int, float]


def milliseconds(network: str, batch: int, size: int | None, seconds: float) -> float:
    """The median step of training on one device, after a few that are not counted."""
    subject = subject_of(network)
    data = dataclasses.replace(subject.recipe.data, size=size)
    recipe = dataclasses.replace(subject.recipe, batch_size=batch, data=data)
    return measure_step(subject._replace(recipe=recipe), "train", bounds=Bounds(seconds, 40), devices=1).step_ms


def meetings(network: str, devices: int, group: int | None) -> int:
    """How often devices meet in a step, as it was compiled."""
    recipe = subject_of(network).recipe
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, norm_group=group), batch_size=64)
    job = prepare(recipe, Dataset(tuple("0123456789"), (32, 32, 3), 50_000, ""), devices)
    compiled = make_advance(job).lower(*abstract(job), abstract_batch(job), step_key(job), None).compile()
    return sum(found.count for found in collectives(compiled.as_text() or "").values())


def counted() -> dict[str, dict[int, int]]:
    """How often devices meet, with groups of BatchNorm and without, as another process with virtual devices finds."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    words = [sys.executable, "-m", "experiments.benchmarks.growth", "--count"]
    done = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return {name: {int(n): count for n, count in counts.items()} for name, counts in json.loads(done.stdout).items()}


def slope(points: Points) -> float:
    """The power of x with which y grows from the middle of the points to the last one."""
    (x0, y0), (x1, y1) = [*points.items()][len(points) // 2], [*points.items()][-1]
    return math.log(y1 / y0) / math.log(x1 / x0)


def draw(panels: dict[str, tuple[Points, str]], met: Mapping[str, Mapping[int, int]], path: Path) -> None:
    """Four panels: three times on logarithmic scales beside a line of proportion, and how often devices meet."""
    figure = Figure(figsize=(12, 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    *timed, counted = figure.subplots(1, 4)
    for axes, (label, (points, title)) in zip(timed, panels.items(), strict=True):
        xs, ys = list(points), list(points.values())
        power = 2 if "pixels" in label else 1
        axes.plot(
            xs, [ys[-1] * (x / xs[-1]) ** power for x in xs], color="#999999", lw=1, ls="--", label="in proportion"
        )
        axes.plot(xs, ys, color="#4c78a8", lw=1.8, marker="o", ms=4, label="measured")
        axes.set(xscale="log", yscale="log", xlabel=label, title=title)
        axes.set_xticks(xs, [str(x) for x in xs], fontsize=8, rotation=45)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    timed[0].set_ylabel("ms a step")
    for (label, counts), color in zip(met.items(), ("#4c78a8", "#e4572e"), strict=True):
        counted.plot(list(counts), list(counts.values()), color=color, lw=1.8, marker="o", ms=4, label=label)
    counted.set(xlabel="devices", ylabel="collectives a step", title="resnet20, 64 images")
    counted.set_xticks(DEVICES)
    for axes in (*timed, counted):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def table(name: str, points: dict[Any, Any]) -> None:
    print(f"| {name} | {' | '.join(map(str, points))} |\n|---|{'--:|' * len(points)}")
    print(f"| ms a step | {' | '.join(f'{y:.1f}' for y in points.values())} |\n")


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--seconds", type=script.above_zero, default=4.0, help="for each point, compiling aside")
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        ways = {f"BatchNorm over {GROUP} images": GROUP, "over the whole batch": None}
        return print(json.dumps({name: {n: meetings("resnet20", n, g) for n in DEVICES} for name, g in ways.items()}))
    seconds = arguments.seconds
    panels = {
        "images a step": (
            {batch: milliseconds("resnet20", batch, None, seconds) for batch in BATCHES},
            "resnet20, 32 x 32 pixels",
        ),
        "layers": (
            {depth: milliseconds(f"resnet{depth}", 32, None, seconds) for depth in DEPTHS},
            "32 images of 32 x 32 pixels",
        ),
        "pixels in height and width": (
            {size: milliseconds("resnet18", 4, size, seconds) for size in SIZES},
            "resnet18, 4 images",
        ),
    }
    for label, (points, title) in panels.items():
        print(f"{title}; at the end with {label} to the power of {slope(points):.2f}\n")
        table(label, points)
    met = counted()
    for name, counts in met.items():
        print(f"collectives a step, {name}: {', '.join(f'{n} devices {count}' for n, count in counts.items())}")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    return draw(panels, met, arguments.out)


if __name__ == "__main__":
    script.run(main)
