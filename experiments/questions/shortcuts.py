"""What do the shortcut options cost and bring?

He et al. 2015, section 4.1, "Identity vs. projection shortcuts", and table 3: A, zeros for the new channels, has no
parameters; B projects where the shape changes; C projects in every block. On ImageNet with ResNet-34 their top-1 errors
are 25.03, 24.52 and 24.19 %, "so we do not use option C in the rest of this paper".

    python experiments/questions/shortcuts.py

B adds 1.0 % to the parameters of ResNet-20 and 0.6 % to its multiply-adds, C 5.3 and 5.2 %, A nothing. On the digits
they bring nothing either: after 200 steps the training loss is 0.0030 +- 0.0015 with A, 0.0047 +- 0.0015 with B and
0.0057 +- 0.0011 with C, and the test errors, 1.6 +- 0.7, 1.8 +- 0.5 and 1.6 +- 0.4 %, are the same within their spread.
Having any matters more than which, and shows in training alone: without, the loss is 0.025 +- 0.010, and the test error
1.6 +- 0.5 % (2.2 +- 0.7 % in an earlier measurement).

Measured with the command above: digits, batches of 64, 200 steps, 5 seeds; 2 min 44 s on two cores of a shared server.

Picture: experiments/pictures/questions/shortcuts.png
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import script
from experiments.questions import trials
from resnet_jax import SHORTCUTS, create, summarize
from resnet_jax.curves import plain_log
from resnet_jax.recipe import Model

NAME = "resnet20"
COLORS = {"A": trials.BLUE, "B": trials.RED, "C": trials.TEAL, "none": trials.GRAY}
STYLES = {"A": "-", "B": "--", "C": "-.", "none": ":"}


class Cost(NamedTuple):
    """Of the network at its published input size."""

    parameters: int
    multiply_adds: int  # an image


class Brought(NamedTuple):
    """What training brought, seed by seed."""

    loss: np.ndarray  # (seeds, steps) of each batch, nats
    accuracy: np.ndarray  # (seeds,) held out, 0 to 1
    seconds: float  # a step, the median over all


def cost(name: str, option: str) -> Cost:
    model = create(name, shortcut=SHORTCUTS[option])
    rows = summarize(model, model.input_shape)
    return Cost(sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows))


def bring(name: str, option: Any, data: str, steps: int, seeds: int, data_dir: Path = Path("data")) -> Brought:
    recipe = trials.short_recipe(Model(name=name, shortcut=option), data, steps, schedule="cosine", warmup=20)
    trial = trials.make_trial(recipe, data_dir)
    accuracy = trials.make_accuracy(trial)
    runs = [trials.run(trial, seed) for seed in range(seeds)]
    right = np.array([accuracy(run.state) for run in runs])
    return Brought(np.stack([run.loss for run in runs]), right, float(np.median([run.seconds for run in runs])))


def draw(found: dict[str, Brought], costs: dict[str, Cost], data: str, path: Path) -> None:
    figure, (curves, points) = trials.canvas(f"Shortcut options in {NAME} on {data}")
    for number, (option, brought) in enumerate(found.items()):
        x = np.arange(1, brought.loss.shape[1] + 1)
        trials.band(curves, x, trials.smooth(brought.loss), COLORS[option], option, ls=STYLES[option])
        errors = 100 * (1 - brought.accuracy)
        points.plot(np.full(len(errors), number), errors, "o", color=COLORS[option], alpha=0.6, ms=6)
        points.plot([number - 0.25, number + 0.25], [errors.mean()] * 2, color=COLORS[option], lw=2.5)
    base = costs["A"].parameters
    names = [f"{option}\n+{100 * (costs[option].parameters / base - 1):.1f} %" for option in found]
    plain_log(curves)
    curves.set(xlabel="step", ylabel="training loss (nats)", title="training, mean and range over seeds")
    curves.legend(frameon=False, title="shortcut")
    points.set(title="test error, a point a seed", ylabel="error (%)", xlabel="shortcut, and parameters added to A's")
    points.set_xticks(range(len(names)), names)
    points.set_ylim(0, None)
    points.margins(x=0.15)
    trials.save(figure, path)


def main() -> None:
    a = trials.parse(__doc__, seeds=5, steps=200, name="shortcuts")
    costs = {option: cost(NAME, option) for option in COLORS}
    found = {option: bring(NAME, option, a.data, a.steps, a.seeds, a.data_dir) for option in COLORS}
    rows = [
        [
            option,
            f"{costs[option].parameters:,}",
            f"{costs[option].multiply_adds / 1e6:.2f}",
            f"{1000 * brought.seconds:.0f}",
            trials.over_seeds(trials.late(brought.loss), 4),
            trials.over_seeds(100 * (1 - brought.accuracy)),
        ]
        for option, brought in found.items()
    ]
    head = ["shortcut", "parameters", "10^6 multiply-adds", "ms a step", "training loss at the end", "test error, %"]
    trials.table(head, rows)
    draw(found, costs, a.data, a.out)


if __name__ == "__main__":
    script.run(main)
