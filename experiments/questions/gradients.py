"""Do gradients vanish without shortcuts?

He et al. 2015, section 4.1: "We argue that this optimization difficulty is unlikely to be caused by vanishing
gradients." Initialisation: He et al. 2015 ("Delving deep into rectifiers", section 2.2); Glorot and Bengio 2010. Plain
networks with BatchNorm: Yang et al. 2019, "A mean field theory of batch normalization".

    python experiments/questions/gradients.py

Without normalisation they do: at 110 layers the gradient of the first block is 1e-12 with He's initialisation and 7e-29
with Glorot's; with shortcuts it is 12,000 and 0.2. (On maps this small, zero padding covers much of each window, which
He's factor does not account for.) With BatchNorm, as the paper says, no gradient vanishes at initialisation. Without
shortcuts gradients explode instead, by a factor of 1.15 per layer, as Yang et al. 2019 derive: in 110 layers from 0.09
in the last block to 340,000 in the first, with shortcuts from 0.12 to 1.5. After one training step of that size the
gradient does vanish: it is 0.004, by step 25 it is 6e-16, and the loss of plain-110 stays at 2.3, the loss of guessing.
ResNet-110 keeps a gradient of 0.03, although at a learning rate of 0.1 without warm-up its loss does not fall below 2.3
within these steps either.

Measured with the command above: digits, batches of 64, 25 steps, 3 seeds (geometric means, in training
medians); 4 min 10 s on two cores of a shared server.

Picture: experiments/pictures/questions/gradients.png
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments import script
from experiments.questions import trials
from resnet_jax import ResNet
from resnet_jax.models.blocks import identity
from resnet_jax.recipe import Model
from resnet_jax.training.setup import TrainSetup

DEPTHS = (20, 56, 110)
KINDS = {"resnet": (trials.BLUE, "with shortcuts"), "plain": (trials.RED, "without")}
STYLES = {110: "-", 56: "--", 20: ":"}
# Glorot's standard deviation as a multiple of He's, for as many input as output channels
GLOROT = 0.5**0.5


class GradientNorms(NamedTuple):
    """Norms of the gradient of the kernels of each block, from the first block to the last."""

    normalized: np.ndarray
    """(seeds, blocks) at initialisation, with BatchNorm."""
    he: np.ndarray
    """(seeds, blocks) at initialisation, without normalisation."""
    glorot: np.ndarray
    """(seeds, blocks) at initialisation, without normalisation and with kernels scaled by GLOROT."""
    training: np.ndarray
    """(seeds, steps, blocks) with BatchNorm."""
    loss: np.ndarray
    """(seeds, steps) of the same steps, in nats."""


def without_norm(**fields: Any) -> Any:
    """Build no normalisation, as the `norm` of a ResNet."""
    return identity


def block_norms(model: ResNet, grads: dict[str, Any]) -> Array:
    """Return the norm of the gradient of the kernels of each block, (blocks,), in the order of the network."""
    stages = enumerate(model.stages(), 1)
    names = [f"stage{number}_block{index + 1}" for number, stage in stages for index in range(stage.depth)]
    return jnp.stack([tree_norm([grads[name][conv]["kernel"] for conv in ("conv1", "conv2")]) for name in names])


def tree_norm(leaves: list[Array]) -> Array:
    """Return the norm of all numbers together, even if their squares underflow in float32."""
    flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
    largest = jnp.abs(flat).max()
    return largest * jnp.linalg.norm(flat / jnp.where(largest > 0, largest, 1))


def recording_norms(setup: TrainSetup) -> TrainSetup:
    """Return the setup with an optimiser whose state starts with the `block_norms` of the last step."""
    model = setup.model
    assert isinstance(model, ResNet)

    def init(params: dict[str, Any]) -> Array:
        return jnp.zeros(sum(model.depths))

    def update(
        grads: dict[str, Any], state: Array, params: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], Array]:
        return grads, block_norms(model, grads)

    return setup._replace(optimizer=optax.chain(optax.GradientTransformation(init, update), setup.optimizer))


def bare(setup: TrainSetup) -> TrainSetup:
    """Return the setup without normalisation, recording the `block_norms`."""
    return recording_norms(setup._replace(model=setup.model.clone(norm=without_norm)))


def initial_norms(trial: trials.Trial, seed: int, factor: float) -> np.ndarray:
    """Return the norms of the first batch, (blocks,), with all convolutions multiplied by `factor`."""
    init_key, key = trials.keys_of(trial, seed)
    state = trial.init(init_key)
    params = jax.tree.map(lambda leaf: leaf * factor if leaf.ndim == 4 else leaf, state.params)
    state, _ = trial.train_step(state.replace(params=params), next(trials.batches(trial, seed)), key)
    return np.array(state.opt_state[0])


def measure(model: Model, data: str, steps: int, seeds: int, data_dir: Path = Path("data")) -> GradientNorms:
    """Measure the gradient norms of a network at initialisation and in training."""
    recipe = trials.short_recipe(model, data, steps)
    trial = trials.make_trial(recipe, data_dir, bare)
    he, glorot = (np.stack([initial_norms(trial, seed, factor) for seed in range(seeds)]) for factor in (1.0, GLOROT))
    trial = trials.make_trial(recipe, data_dir, recording_norms)
    runs = [
        [(np.array(state.opt_state[0]), loss) for state, loss in trials.training(trial, seed)] for seed in range(seeds)
    ]
    training = np.array([[norms for norms, _ in run] for run in runs])
    return GradientNorms(training[:, 0], he, glorot, training, np.array([[loss for _, loss in run] for run in runs]))


def mean_norms(norms: np.ndarray) -> np.ndarray:
    """Return the geometric mean over seeds, (blocks,) of (seeds, blocks); 0 counts as the smallest float32."""
    return np.exp(np.log(np.maximum(norms, np.finfo(np.float32).tiny)).mean(0))


def draw(found: dict[tuple[str, int], GradientNorms], path: Path) -> None:
    """Draw the norms by block, a panel for each initialisation, and those of the first block in training."""
    deepest = max(depth for _, depth in found)
    first = {kind: f"{float(f'{mean_norms(found[kind, deepest].normalized)[0]:.2g}'):,g}" for kind in KINDS}
    title = f"{deepest} layers with BatchNorm: the first block's gradient is {first['resnet']} with shortcuts,"
    figure, panels = trials.canvas(f"{title} {first['plain']} without", rows=2)
    for (kind, depth), norms in found.items():
        color, label = KINDS[kind]
        style = {"color": color, "ls": STYLES[depth], "label": f"{label}, {depth} layers"}
        for axes, values in zip(panels, (norms.normalized, norms.he, norms.glorot), strict=False):
            axes.plot(np.linspace(0, 1, values.shape[1]), mean_norms(values), **style)
        panels[-1].plot(1 + np.arange(norms.loss.shape[1]), np.median(norms.training[:, :, 0], 0), **style)
    titles = ("BatchNorm, He's initialisation", "no normalisation, He's", "no normalisation, Glorot's")
    for axes, title in zip(panels, (*titles, "BatchNorm: the first block while training"), strict=True):
        axes.set(yscale="log", title=title, ylabel="norm of the gradient")
        axes.set_xlabel("step" if axes is panels[-1] else "block, from input (0) to output (1)")
    panels[0].legend(frameon=False, fontsize=8)
    trials.save(figure, path)


def main() -> None:
    a = trials.parse(__doc__, seeds=3, steps=25, name="gradients")
    names = [(kind, depth) for kind in KINDS for depth in DEPTHS]
    found = {
        (kind, depth): measure(Model(name=f"{kind}{depth}"), a.data, a.steps, a.seeds, a.data_dir)
        for kind, depth in names
    }
    rows = []
    for (kind, depth), norms in found.items():
        ends = [mean_norms(each)[[0, -1]] for each in (norms.normalized, norms.he, norms.glorot, norms.training[:, -1])]
        rows.append(
            [
                f"{kind}{depth}",
                *(f"{first:.1e} {last:.1e}" for first, last in ends),
                trials.over_seeds(norms.loss[:, -10:].mean(1)),
            ]
        )
    cases = ["BatchNorm", "no norm, He", "no norm, Glorot", f"BatchNorm, step {a.steps}", "loss, last 10 steps"]
    trials.table(["gradient of the first and the last block", *cases], rows)
    draw(found, a.out)


if __name__ == "__main__":
    script.run(main)
