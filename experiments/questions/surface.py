"""What does the loss look like around a solution, with and without shortcuts?

Li et al. 2018, "Visualizing the loss landscape of neural nets", section 4 (directions) and figure 1. As there, a plane
of two random directions whose filters have the norms of the network's own; biases and BatchNorm's scale and bias do not
move. As in the authors' code, BatchNorm normalises by the running statistics of the solution.

    python experiments/questions/surface.py

Around ResNet-56 the loss rises evenly from a single valley. It stays below that of guessing, 2.3, on 48 +- 25 % of a
plane that reaches the norm of the filters on each side. The centre is at 0.2 +- 0.3 nats, since one network of three
had not converged after 300 steps (in an earlier measurement all three were at 0.02, and 54 +- 3 % of the plane was
below guessing). Around plain-56, at 1.3 +- 0.5 nats, the loss is below guessing on 5 +- 3 % of the plane, in narrow
valleys beside ridges. Li et al. compare networks that are trained to the end.

Measured with the command above: digits, batches of 64, planes of 17 x 17 points by 256 training images, 3 seeds; 5 min
8 s on two cores of a shared server.

Picture: experiments/pictures/questions/surface.png
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments import script
from experiments.questions import trials
from resnet_jax import TrainState, compiler_options, eval_step
from resnet_jax.data.augment import normalize
from resnet_jax.input_pipeline.device_input import IndexedBatch
from resnet_jax.recipe import Model
from resnet_jax.tasks.metrics import loss_metric

NAMES = {"resnet56": "with shortcuts: ResNet-56", "plain56": "without: plain-56"}
# Half the side of the plane, in norms of the filters, and points along each side
REACH, POINTS = 1.0, 17
# Loss in nats of equal odds for ten classes
GUESSING = float(np.log(10))


class Surface(NamedTuple):
    """The loss around the solution of one run."""

    loss: np.ndarray
    """(points, points) in nats; the solution is in the middle."""
    trained: float
    """Mean loss of the batches of the last steps, in nats."""


def filter_direction(key: Array, params: Any) -> Any:
    """Draw a random direction whose filters have the norms of the parameters' own.

    It is zero for biases and normalisations. A filter makes one output channel, of a convolution or of the head.

    Reference:
        Li et al. 2018, section 4.
    """
    leaves, tree = jax.tree.flatten(params)

    def one(key: Array, leaf: Array) -> Array:
        if leaf.ndim == 1:
            return jnp.zeros_like(leaf)
        drawn = jax.random.normal(key, leaf.shape)
        return drawn * (filter_norms(leaf) / filter_norms(drawn))

    return jax.tree.unflatten(tree, map(one, jax.random.split(key, len(leaves)), leaves))


def filter_norms(kernel: Array) -> Array:
    """Return the norms of the filters of a kernel (..., out), as (1, ..., out)."""
    return jnp.sqrt(jnp.square(kernel).sum(range(kernel.ndim - 1), keepdims=True))


def make_loss(trial: trials.Trial, images: int) -> Callable[..., Array]:
    """Return the function (state, direction, direction, a, b) -> mean loss in nats.

    The loss is that of the first training images, at the parameters of the state plus a and b times the directions.
    """
    setup, data = trial.setup, trial.setup.recipe.data
    measure = partial(
        eval_step,
        model=setup.model,
        metrics={"loss": loss_metric(setup.task.loss)},
        normalize=partial(normalize, mean=data.mean, std=data.std),
    )

    @partial(jax.jit, compiler_options=compiler_options())
    def shifted_loss(batch: IndexedBatch, state: TrainState, one: Any, other: Any, a: Array, b: Array) -> Array:
        params = jax.tree.map(lambda p, d, e: p + a * d + b * e, state.params, one, other)
        sums = measure(state.replace(params=params), batch)["loss"]
        return sums["loss"] / sums["weight"]

    return partial(shifted_loss, trials.batch_at(trial, np.arange(images)))


def surface(trial: trials.Trial, loss: Callable[..., Array], seed: int, points: int) -> Surface:
    """Train with a seed, and evaluate the loss on a plane drawn with the same seed."""
    state, trained, _ = trials.run(trial, seed)
    one, other = (filter_direction(key, state.params) for key in jax.random.split(jax.random.key(seed)))
    line = np.linspace(-REACH, REACH, points, dtype=np.float32)
    values = [[float(loss(state, one, other, a, b)) for a in line] for b in line]
    return Surface(np.array(values), float(trials.final_loss(trained)))


def below(loss: np.ndarray, level: float = GUESSING) -> float:
    """Return the fraction of a plane on which the loss is lower than a level."""
    return float((loss < level).mean())


def valleys(loss: np.ndarray) -> int:
    """Count the points that are lower than all eight neighbours, without the edge."""
    size = len(loss)
    inner = loss[1:-1, 1:-1]
    shifts = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return int(np.all([inner < loss[i : size - 2 + i, j : size - 2 + j] for i, j in shifts], axis=0).sum())


def draw(found: dict[str, list[Surface]], path: Path) -> None:
    """Draw the contours of the first seed of each network."""
    from matplotlib.colors import LogNorm

    percent = {name: 100 * np.mean([below(each.loss) for each in surfaces]) for name, surfaces in found.items()}
    what = f"{percent['resnet56']:.0f} % of the plane with shortcuts and {percent['plain56']:.0f} % without"
    figure, panels = trials.canvas(f"Around a solution the loss beats guessing on {what}")
    levels = np.geomspace(0.01, 100, 25)
    for axes, (name, surfaces) in zip(panels, found.items(), strict=True):
        loss = surfaces[0].loss
        line = np.linspace(-REACH, REACH, len(loss))
        filled = axes.contourf(line, line, np.clip(loss, 0.0101, 99), levels, norm=LogNorm(0.01, 100), cmap="cividis")
        axes.contour(line, line, loss, levels[::2], colors="white", linewidths=0.5, alpha=0.6)
        axes.contour(line, line, loss, [GUESSING], colors=trials.RED, linewidths=2)
        axes.plot(0, 0, "+", color="white", ms=9, mew=2)
        axes.grid(visible=False)
        axes.set(title=NAMES[name], aspect="equal", xlabel="first direction, in norms of the filters")
    panels[0].set_ylabel("second direction")
    bar = figure.colorbar(filled, ax=panels, ticks=[0.01, 0.1, 1, 10, 100], label="training loss (nats); red: guessing")
    bar.ax.set_yticklabels(["0.01", "0.1", "1", "10", "100"])
    trials.save(figure, path)


def main() -> None:
    a = trials.parse(__doc__, seeds=3, steps=300, name="surface")
    found = {}
    for name in NAMES:
        recipe = trials.short_recipe(Model(name=name), a.data, a.steps, schedule="cosine", warmup=a.steps // 10)
        trial = trials.make_trial(recipe, a.data_dir)
        loss = make_loss(trial, 256)
        found[name] = [surface(trial, loss, seed, POINTS) for seed in range(a.seeds)]
    rows = []
    for name, surfaces in found.items():
        planes = [each.loss for each in surfaces]
        rows.append(
            [
                name,
                trials.over_seeds(np.array([each.trained for each in surfaces]), 3),
                trials.over_seeds(np.array([plane[len(plane) // 2, len(plane) // 2] for plane in planes]), 3),
                trials.over_seeds(100 * np.array([below(plane) for plane in planes]), 0),
                trials.over_seeds(np.array([valleys(plane) for plane in planes]), 1),
            ]
        )
    trials.table(["", "loss trained to", "at the centre", "% of the plane below guessing", "valleys"], rows)
    draw(found, a.out)


if __name__ == "__main__":
    script.run(main)
