"""What do the shortcut options cost and gain?

He et al. 2015, section 4.1, "Identity vs. projection shortcuts", and table 3: A pads new channels with zeros and has no
parameters; B projects if the shape changes; C projects in every block. On ImageNet with ResNet-34 their top-1 errors
are 25.03, 24.52 and 24.19 %, "so we do not use option C in the rest of this paper".

    python experiments/questions/shortcuts.py

B adds 1.0 % to the parameters of ResNet-20 and 0.6 % to its multiply-adds, C adds 5.3 and 5.2 %, A nothing. On the
digits they bring nothing either: after 200 steps the training loss is 0.0030 +- 0.0015 with A, 0.0047 +- 0.0015 with B
and 0.0057 +- 0.0011 with C, and the test errors, 1.6 +- 0.7, 1.8 +- 0.5 and 1.6 +- 0.4 %, agree within their standard
deviations. Having a shortcut matters more than which one, and shows in training only: without one the loss is 0.025 +-
0.010, and the test error 1.6 +- 0.5 % (2.2 +- 0.7 % in an earlier measurement).

Measured with the command above: digits, batches of 64, 200 steps, 5 seeds; 2 min 44 s on two cores of a shared server.

Picture: experiments/pictures/questions/shortcuts.png
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from experiments import script
from experiments.questions import trials
from resnet_jax import SHORTCUTS, create_model, summarize
from resnet_jax.recipe import Model
from resnet_jax.report.curves import plain_log

MODEL = Model(name="resnet20")
Option = Literal["A", "B", "C", "none"]
COLORS: dict[Option, str] = {"A": trials.BLUE, "B": trials.RED, "C": trials.TEAL, "none": trials.GRAY}
STYLES: dict[Option, str] = {"A": "-", "B": "--", "C": "-.", "none": ":"}


class Cost(NamedTuple):
    """Cost of a network at its published input size."""

    parameters: int
    multiply_adds: int
    """Per image."""


class Outcome(NamedTuple):
    """Trained networks with one shortcut option."""

    loss: np.ndarray
    """(seeds, steps) loss of each batch, in nats."""
    accuracy: np.ndarray
    """(seeds,) on the test split, 0 to 1."""
    seconds: float
    """Median time per step."""


def cost(name: str, option: str) -> Cost:
    """Return the cost of a published network with another shortcut option."""
    model = create_model(name, shortcut=SHORTCUTS[option])
    rows = summarize(model, model.input_shape)
    return Cost(sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows))


def outcome(model: Model, data: str, steps: int, seeds: int, data_dir: Path = Path("data")) -> Outcome:
    """Train a network with each seed and evaluate it."""
    recipe = trials.short_recipe(model, data, steps, schedule="cosine", warmup=20)
    trial = trials.make_trial(recipe, data_dir)
    accuracy = trials.make_accuracy(trial)
    runs = [trials.run(trial, seed) for seed in range(seeds)]
    reached = np.array([accuracy(run.state) for run in runs])
    return Outcome(np.stack([run.loss for run in runs]), reached, float(np.median([run.seconds for run in runs])))


def draw(found: dict[Option, Outcome], costs: dict[Option, Cost], data: str, path: Path) -> None:
    """Draw training loss and test error of each option."""
    figure, (curves, points) = trials.canvas(f"Shortcut options in {MODEL.name} on {data}")
    for number, (option, each) in enumerate(found.items()):
        x = np.arange(1, each.loss.shape[1] + 1)
        trials.band(curves, x, trials.smooth(each.loss), COLORS[option], option, ls=STYLES[option])
        errors = 100 * (1 - each.accuracy)
        points.plot(np.full(len(errors), number), errors, "o", color=COLORS[option], alpha=0.6, ms=6)
        points.plot([number - 0.25, number + 0.25], [errors.mean()] * 2, color=COLORS[option], lw=2.5)
    base = costs["A"].parameters
    names = [f"{option}\n+{100 * (costs[option].parameters / base - 1):.1f} %" for option in found]
    plain_log(curves)
    curves.set(xlabel="step", ylabel="training loss (nats)", title="training, mean and range over seeds")
    curves.legend(frameon=False, title="shortcut")
    points.set(title="test error, one point per seed", ylabel="error (%)", xlabel="shortcut, and parameters beyond A")
    points.set_xticks(range(len(names)), names)
    points.set_ylim(0, None)
    points.margins(x=0.15)
    trials.save(figure, path)


def main() -> None:
    a = trials.parse(__doc__, seeds=5, steps=200, name="shortcuts")
    costs = {option: cost(MODEL.name, option) for option in COLORS}
    models = {option: replace(MODEL, shortcut=option) for option in COLORS}
    found = {option: outcome(model, a.data, a.steps, a.seeds, a.data_dir) for option, model in models.items()}
    rows = [
        [
            option,
            f"{costs[option].parameters:,}",
            f"{costs[option].multiply_adds / 1e6:.2f}",
            f"{1000 * each.seconds:.0f}",
            trials.over_seeds(trials.final_loss(each.loss), 4),
            trials.over_seeds(100 * (1 - each.accuracy)),
        ]
        for option, each in found.items()
    ]
    head = ["shortcut", "parameters", "10^6 multiply-adds", "ms per step", "training loss at the end", "test error, %"]
    trials.table(head, rows)
    draw(found, costs, a.data, a.out)


if __name__ == "__main__":
    script.run(main)
