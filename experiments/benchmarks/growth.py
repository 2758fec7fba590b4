"""Cost of a training step as work grows: images per step, layers, pixels, and devices.

    python -m experiments.benchmarks.growth

Times the step that trains on this machine, and counts the collectives of a step on 1 to 8 (virtual) devices. Prints
the figures as tables and draws growth.png into experiments/pictures.
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
from resnet_jax.run_dir.files import DatasetInfo
from resnet_jax.tools.bench.step import MeasureFor, bench_target, measure_step
from resnet_jax.tools.hlo import collectives
from resnet_jax.tools.preflight import abstract_batch
from resnet_jax.training.init import abstract_train_state
from resnet_jax.training.make_step import make_train_step, step_key
from resnet_jax.training.setup import make_setup

PICTURE = Path("experiments/pictures/growth.png")
BATCHES = (8, 16, 32, 64, 128, 256)
DEPTHS = (20, 32, 44, 56, 110)
SIZES = (32, 64, 96, 128, 192, 224)
DEVICES = (1, 2, 4, 8)
# Images per BatchNorm group, if it is not the whole batch
GROUP = 8

Points = dict[int, float]


def milliseconds(network: str, batch: int, size: int | None, seconds: float) -> float:
    """Return the median time of a training step on one device, after a few that are not counted."""
    target = bench_target(network)
    data = dataclasses.replace(target.recipe.data, image_size=size)
    recipe = dataclasses.replace(target.recipe, batch_size=batch, data=data)
    return measure_step(target._replace(recipe=recipe), "train", bounds=MeasureFor(seconds, 40), devices=1).step_ms


def count_collectives(network: str, devices: int, group: int | None) -> int:
    """Return the number of collectives in a compiled step."""
    recipe = bench_target(network).recipe
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, norm_group_size=group), batch_size=64)
    setup = make_setup(recipe, DatasetInfo(tuple("0123456789"), (32, 32, 3), 50_000, ""), devices)
    lowered = make_train_step(setup).lower(abstract_train_state(setup), abstract_batch(setup), step_key(setup))
    compiled = lowered.compile()
    return sum(found.count for found in collectives(compiled.as_text() or "").values())


def collectives_by_devices() -> dict[str, dict[int, int]]:
    """Count collectives with and without BatchNorm groups, in another process that has virtual devices."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    words = [sys.executable, "-m", "experiments.benchmarks.growth", "--count"]
    done = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return {name: {int(n): count for n, count in counts.items()} for name, counts in json.loads(done.stdout).items()}


def slope(points: Points) -> float:
    """Return the exponent with which y grows with x from the middle of the points to the last one."""
    (x0, y0), (x1, y1) = [*points.items()][len(points) // 2], [*points.items()][-1]
    return math.log(y1 / y0) / math.log(x1 / x0)


def draw(panels: dict[str, tuple[Points, str]], counts_by: Mapping[str, Mapping[int, int]], path: Path) -> None:
    """Draw step times on logarithmic scales beside proportional lines, and the number of collectives."""
    figure = Figure(figsize=(12, 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    *timed, counted = figure.subplots(1, 4)
    for axes, (label, (points, title)) in zip(timed, panels.items(), strict=True):
        xs, ys = list(points), list(points.values())
        power = 2 if "pixels" in label else 1
        axes.plot(
            xs, [ys[-1] * (x / xs[-1]) ** power for x in xs], color="#999999", lw=1, ls="--", label="proportional"
        )
        axes.plot(xs, ys, color="#4c78a8", lw=1.8, marker="o", ms=4, label="measured")
        axes.set(xscale="log", yscale="log", xlabel=label, title=title)
        axes.set_xticks(xs, [str(x) for x in xs], fontsize=8, rotation=45)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    timed[0].set_ylabel("ms per step")
    for (label, counts), color in zip(counts_by.items(), ("#4c78a8", "#e4572e"), strict=True):
        counted.plot(list(counts), list(counts.values()), color=color, lw=1.8, marker="o", ms=4, label=label)
    counted.set(xlabel="devices", ylabel="collectives per step", title="resnet20, 64 images")
    counted.set_xticks(DEVICES)
    for axes in (*timed, counted):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def table(name: str, points: dict[Any, Any]) -> None:
    """Print step times as a Markdown table."""
    print(f"| {name} | {' | '.join(map(str, points))} |\n|---|{'--:|' * len(points)}")
    print(f"| ms per step | {' | '.join(f'{y:.1f}' for y in points.values())} |\n")


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--seconds", type=script.above_zero, default=4.0, help="per point, without compilation")
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        groups = {f"BatchNorm over {GROUP} images": GROUP, "over the whole batch": None}
        found = {name: {n: count_collectives("resnet20", n, g) for n in DEVICES} for name, g in groups.items()}
        return print(json.dumps(found))
    seconds = arguments.seconds
    panels = {
        "images per step": (
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
        print(f"{title}; at the end the time grows as ({label})^{slope(points):.2f}\n")
        table(label, points)
    counts_by = collectives_by_devices()
    for name, counts in counts_by.items():
        print(f"collectives per step, {name}: {', '.join(f'{n} devices {count}' for n, count in counts.items())}")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    return draw(panels, counts_by, arguments.out)


if __name__ == "__main__":
    script.run(main)
