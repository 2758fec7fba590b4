"""Does pre-activation train a network of 110 layers better than the original unit?

He et al. 2016, "Identity mappings", section 4: on CIFAR-10 the error of ResNet-110 is 6.61 %, with pre-activation
6.37 %. He et al. 2015, section 4.2: at 110 layers a learning rate of 0.1 "is slightly too large to start converging",
so the first 400 steps or so are taken at 0.01.

    python experiments/questions/preactivation.py

At a learning rate of 0.1 from the start, yes: the loss of ResNet-110 shoots up to 53 nats and is at 2.29 +- 0.08, the
loss of guessing, after 80 steps. With pre-activation it never exceeds 2.4, is at 0.5 after 37 steps and ends at 0.33 +-
0.03. A warm-up of 30 steps from a tenth of that rate is too short to help the original unit: its loss still reaches 40
and ends at 2.11 +- 0.14, that of pre-activation at 0.31 +- 0.06. These 80 steps do not say which is better after
training for as long as in the papers.

Measured with the command above: digits, 80 steps of 32 images, 3 seeds; 2 min 36 s on two cores of a shared server.

Picture: experiments/pictures/questions/preactivation.png
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax

from experiments import script
from experiments.questions import trials
from resnet_jax import TrainState
from resnet_jax.recipe import Model
from resnet_jax.report.curves import plain_log

NAMES = {"resnet110": (trials.BLUE, "original", "-"), "resnet110v2": (trials.RED, "pre-activation", "--")}
# Steps
WARMUP = 30


def warm_trial(model: Model, data: str, steps: int, data_dir: Path = Path("data")) -> trials.Trial:
    """Return the trial of a network with warm-up."""
    recipe = trials.short_recipe(model, data, steps, warmup=WARMUP, batch_size=32)
    return trials.make_trial(recipe, data_dir)


def losses(warm: trials.Trial, seeds: int) -> dict[int, np.ndarray]:
    """Return the loss of each batch in nats, (seeds, steps), without and with warm-up, by its steps."""
    # Only the first state differs, so that both share one program
    cold = warm._replace(init=lambda key: after_warmup(warm.init(key)))
    return {
        warmup: np.stack([trials.run(trial, seed).loss for seed in range(seeds)])
        for warmup, trial in ((0, cold), (WARMUP, warm))
    }


def after_warmup(state: TrainState) -> TrainState:
    """Return the state with the learning rate after the warm-up, by the optimiser's own count of steps."""
    return state.replace(opt_state=optax.tree.set(state.opt_state, count=jnp.full_like(state.step, WARMUP)))


def steps_to(loss: np.ndarray, level: float) -> float:
    """Return the mean number of steps until the smoothed loss is at most `level`.

    It is infinite if the loss of a seed stays above it.
    """
    under = trials.smooth(loss) <= level
    return float(np.where(under.any(1), under.argmax(1) + 1, np.inf).mean())


def draw(found: dict[tuple[str, int], np.ndarray], data: str, path: Path) -> None:
    """Draw the training loss of both units, a panel without and one with warm-up."""
    ends = [f"{trials.final_loss(found[name, 0]).mean():.2g}" for name in NAMES]
    steps = found["resnet110", 0].shape[1]
    title = f"Loss of 110 layers on {data} after {steps} steps: {ends[0]} with original units, {ends[1]} pre-activated"
    figure, panels = trials.canvas(title, sharey=True)
    for axes, warmup in zip(panels, (0, WARMUP), strict=True):
        for name, (color, label, style) in NAMES.items():
            loss = trials.smooth(found[name, warmup])
            trials.band(axes, np.arange(1, loss.shape[1] + 1), loss, color, label, ls=style)
        title = f"warm-up of {warmup} steps" if warmup else "no warm-up"
        axes.axhline(np.log(10), color=trials.GRAY, lw=1, ls=":", label="guessing")
        plain_log(axes)
        axes.set(xlabel="step", title=title)
        axes.legend(frameon=False)
    panels[0].set_ylabel("training loss (nats)")
    trials.save(figure, path)


def main() -> None:
    a = trials.parse(__doc__, seeds=3, steps=80, name="preactivation")
    found = {
        (name, warmup): loss
        for name in NAMES
        for warmup, loss in losses(warm_trial(Model(name=name), a.data, a.steps, a.data_dir), a.seeds).items()
    }
    rows = [
        [
            f"{name}, warm-up {warmup}",
            f"{loss.max():.1f}",
            f"{steps_to(loss, 0.5):.0f}",
            trials.over_seeds(trials.final_loss(loss), 3),
        ]
        for (name, warmup), loss in found.items()
    ]
    trials.table(["", "largest loss", "steps to a loss of 0.5", "loss at the end"], rows)
    draw(found, a.data, a.out)


if __name__ == "__main__":
    script.run(main)
