"""What does the number of images that share BatchNorm statistics do?

Goyal et al. 2017, section 2.3, keep it at 32 for any batch size; Wu and He 2018, figure 1: below 16 the error grows.

    python experiments/questions/norm_groups.py

With few images per group the running statistics are a poor substitute for those that the network was trained with: the
test error of ResNet-20 is 2.8 +- 0.6 % with groups of 1, 1.8 +- 0.3 % with groups of 2, and 1.4 +- 0.3, 1.0 +- 0.4 and
1.8 +- 0.4 % with groups of 4, 16 and 64. The training loss does not show it: with groups of 1, where no image depends
on another, it ends at 0.0048 +- 0.0014, much as with 64 (0.0051 +- 0.0009), and at 0.011 in between. Three seeds and
360 test images resolve no more than that groups of 1 are worst: an earlier measurement found 3.2, 1.8, 1.5, 1.3 and 1.4
%.

Measured with the command above: digits, 150 steps of 64 images, 3 seeds; 2 min 15 s on two cores of a shared server.

Picture: experiments/pictures/questions/norm_groups.png
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import script
from experiments.questions import trials
from resnet_jax.recipe import Model
from resnet_jax.report.curves import plain_log

GROUPS = (1, 2, 4, 16, 64)
BATCH = 64


class Outcome(NamedTuple):
    """Networks that were trained with groups of one size."""

    loss: np.ndarray
    """(seeds, steps) loss of each batch by its own statistics, in nats."""
    train: np.ndarray
    """(seeds,) error on 1,000 training images by the running statistics, 0 to 1."""
    test: np.ndarray
    """(seeds,) error on test images, likewise."""


def outcome(model: Model, data: str, steps: int, seeds: int, data_dir: Path = Path("data")) -> Outcome:
    """Train a network with each seed and evaluate it on training and test images."""
    recipe = trials.short_recipe(model, data, steps, schedule="cosine", warmup=20, batch_size=BATCH)
    trial = trials.make_trial(recipe, data_dir)
    train, test = trials.make_accuracy(trial, trial.train), trials.make_accuracy(trial)
    runs = [trials.run(trial, seed) for seed in range(seeds)]
    errors = [(1 - train(run.state), 1 - test(run.state)) for run in runs]
    return Outcome(np.stack([run.loss for run in runs]), *np.array(errors).T)


def draw(found: dict[int, Outcome], data: str, path: Path) -> None:
    """Draw the training loss of each group size, and the errors by the running statistics."""
    from matplotlib import colormaps

    ends = [f"{100 * found[group].test.mean():.1f} % test error with {group}" for group in (min(found), max(found))]
    title = f"Images that share BatchNorm statistics: {ends[0]}, {ends[1]}"
    figure, (curves, errors) = trials.canvas(title)
    for number, (group, each) in enumerate(found.items()):
        shade = colormaps["cividis"](0.9 * number / max(1, len(found) - 1))
        mean = trials.smooth(each.loss).mean(0)
        curves.plot(np.arange(1, len(mean) + 1), mean, color=shade, lw=1.8, label=group)
    plain_log(curves)
    curves.set(xlabel="step", ylabel="training loss (nats)", title=f"ResNet-20 on {data}, batches of {BATCH}")
    curves.legend(frameon=False, title="group", ncols=2)
    for field, color, label, style in (
        ("test", trials.RED, "test images", "-"),
        ("train", trials.BLUE, "training images", "--"),
    ):
        values = 100 * np.stack([getattr(each, field) for each in found.values()], 1)
        trials.band(errors, list(found), values, color, label, ls=style, marker="o", ms=4)
    errors.set(title="error by the running statistics, mean and range", xlabel="group", ylabel="error (%)")
    errors.set_xscale("log", base=2)
    errors.set_xticks(list(found), [str(group) for group in found])
    errors.set_ylim(0, None)
    errors.legend(frameon=False)
    trials.save(figure, path)


def main() -> None:
    a = trials.parse(__doc__, seeds=3, steps=150, name="norm_groups")
    models = {group: Model(name="resnet20", norm_group_size=group) for group in GROUPS}
    found = {group: outcome(model, a.data, a.steps, a.seeds, a.data_dir) for group, model in models.items()}
    rows = [
        [
            group,
            trials.over_seeds(trials.final_loss(each.loss), 4),
            trials.over_seeds(100 * each.train),
            trials.over_seeds(100 * each.test),
        ]
        for group, each in found.items()
    ]
    head = ["group", "training loss at the end", "training error by running statistics, %", "test error, %"]
    trials.table(head, rows)
    draw(found, a.data, a.out)


if __name__ == "__main__":
    script.run(main)
