"""What does federated averaging cost against central training?

McMahan et al. 2017, algorithm 1 (FederatedAveraging) and section 3 (the split by shards of two classes): in every round
each client trains on its own data, and the server averages their parameters, weighted by their number of examples. All
clients train at once, under `jax.vmap`. Running statistics of BatchNorm are averaged as well; group normalisation has
none (Hsieh et al. 2020, "The non-IID data quagmire", section 5). Clients of unequal size take one pass over their own
data per round, with and without FedProx (Li et al. 2020); how the server adds what they send is an argument
(`experiments.privacy.secure_sum`).

    python experiments/questions/federated.py

If every client has examples of all classes it costs nothing: after 30 rounds of 10 clients the test accuracy is 98.4 +-
0.4 %, that of central training on as many images 98.5 +- 0.4 %, and both pass 90 % in round 5 or 6. With two shards per
client, mostly of one class each, it takes 16 to 20 rounds to reach 90 %, and the accuracy ends at 94.2 +- 0.6 %, still
rising. Averaging the statistics of BatchNorm is not to blame here: with GroupNorm, which has none, the skewed split
takes 19 or 20 rounds and ends at 93.9 %.

Measured with the command above: ResNet-8 (one block per stage) on digits, 9 steps of 16 images per client and round,
SGD without momentum, 3 seeds; 4 min 20 s on two cores of a shared server. Clients of 57 to 277 digits with skewed
classes end at 92.9 +- 2.8 % with BatchNorm, and at 92.7 +- 2.9 % with FedProx (strength 0.1), which does not help here
(3 seeds, a minute of processor time each). With GroupNorm they are not yet measured; the picture does not have them.

Picture: experiments/pictures/questions/federated.png
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments import script
from experiments.privacy.secure_sum import SecureSum, plain_sum
from experiments.questions import trials
from resnet_jax import BatchNorm, TrainState, compiler_options
from resnet_jax.input_pipeline.device_input import DeviceArrays, IndexedBatch
from resnet_jax.input_pipeline.sampler import batch_indices
from resnet_jax.models.norm import group_norm
from resnet_jax.recipe import Model
from resnet_jax.training.make_step import make_train_step
from resnet_jax.training.setup import TrainSetup

NORMS: dict[str, Callable[..., Any]] = {"BatchNorm": BatchNorm, "GroupNorm": partial(group_norm, num_groups=4)}
COLORS = {"central": trials.GRAY, "IID": trials.BLUE, "skewed": trials.RED}
COLORS |= {"unequal": trials.TEAL, "unequal, FedProx": trials.TEAL}
STYLES = {"central": ":", "IID": "-", "skewed": "--", "unequal": "--", "unequal, FedProx": "-"}
# A round is one pass over the 144 digits of a client
CLIENTS, LOCAL_BATCH, LOCAL_STEPS = 10, 16, 9
# Strength of FedProx
PROX = 0.1

# Indices of the examples of each client
ClientIndices = list[np.ndarray]


def iid_split(labels: np.ndarray, clients: int, seed: int) -> ClientIndices:
    """Deal every example to one client, whatever its label."""
    return np.array_split(np.random.default_rng(seed).permutation(len(labels)), clients)


def skewed_split(labels: np.ndarray, clients: int, seed: int) -> ClientIndices:
    """Sort the examples by label, cut them into two shards per client, and deal the shards at random.

    Reference:
        McMahan et al. 2017, section 3.
    """
    shards = np.array_split(np.argsort(labels, kind="stable"), 2 * clients)
    order = np.random.default_rng(seed).permutation(2 * clients).reshape(clients, 2)
    return [np.concatenate([shards[shard] for shard in pair]) for pair in order]


def unequal_split(labels: np.ndarray, clients: int, seed: int) -> ClientIndices:
    """Deal shards as `skewed_split`, but of log-normal sizes."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.lognormal(sigma=0.7, size=2 * clients))
    cuts = (ends[:-1] / ends[-1] * len(labels)).astype(int)
    shards = np.split(np.argsort(labels, kind="stable"), cuts)
    order = rng.permutation(2 * clients).reshape(clients, 2)
    return [np.concatenate([shards[shard] for shard in pair]) for pair in order]


SPLITS: dict[str, Callable[[np.ndarray, int, int], ClientIndices]] = {
    "central": lambda labels, clients, seed: [np.arange(len(labels))],
    "IID": iid_split,
    "skewed": skewed_split,
    "unequal": unequal_split,
    "unequal, FedProx": unequal_split,
}


class Anchor(NamedTuple):
    """State of `stay_near`."""

    anchor: Any
    """Parameters of the server at the start of the round."""


def stay_near(strength: float) -> optax.GradientTransformation:
    """Return the gradient of FedProx's term, strength / 2 times the squared distance to the server's parameters.

    Reference:
        Li et al. 2020, "Federated optimization in heterogeneous networks", algorithm 2.
    """

    def update(updates: Any, state: Anchor, params: Any) -> tuple[Any, Anchor]:
        return jax.tree.map(lambda g, p, a: g + strength * (p - a), updates, params, state.anchor), state

    return optax.GradientTransformation(Anchor, update)


def average(states: TrainState, weights: Array, key: Array, *, secure_sum: SecureSum = plain_sum) -> TrainState:
    """Return the state of the server: the mean of its clients' (clients, ...), with weights of sum 1.

    Args:
        states: of the clients.
        weights: (clients,).
        key: of what hides the summands.
        secure_sum: adds what the clients send, their weighted parameters and statistics.
    """

    leaves, tree = jax.tree.flatten((states.params, states.batch_stats))
    sums = [
        # A mask hides one sum only
        secure_sum(weights.reshape(-1, *(1,) * (leaf.ndim - 1)) * leaf, jax.random.fold_in(key, number))
        for number, leaf in enumerate(leaves)
    ]
    params, batch_stats = jax.tree.unflatten(tree, sums)
    first = jax.tree.map(lambda leaf: leaf[0], states.opt_state)
    return states.replace(step=states.step.max(), params=params, batch_stats=batch_stats, opt_state=first)


def make_round(
    trial: trials.Trial, local_steps: int | None, secure_sum: SecureSum = plain_sum
) -> Callable[[TrainState, ClientIndices, int, int], TrainState]:
    """Return the function (state of the server, clients, number of the round, seed) -> state after the round.

    Args:
        trial: of one client.
        local_steps: steps of every client per round; None is one pass over its own data.
        secure_sum: adds what the clients send.
    """
    size, step = trial.setup.recipe.batch_size, make_train_step(trial.setup, jit=False)
    merge = jax.jit(partial(average, secure_sum=secure_sum))

    @partial(jax.jit, donate_argnums=0, compiler_options=compiler_options())
    def train_clients(
        states: TrainState, arrays: DeviceArrays, indices: Array, active: Array, key: Array
    ) -> TrainState:
        def train_client(state: TrainState, indices: Array, active: Array) -> TrainState:
            new: TrainState = step(state, IndexedBatch(arrays, indices, None), key)[0]
            return jax.tree.map(lambda new, old: jnp.where(active, new, old), new, state)

        return jax.vmap(train_client)(states, indices, active)

    def train_round(state: TrainState, clients: ClientIndices, number: int, seed: int) -> TrainState:
        key, arrays = trials.keys_of(trial, seed)[1], trial.train.arrays
        counts = np.array([len(client) for client in clients])
        steps = np.maximum(counts // size, 1) if local_steps is None else np.full(len(clients), local_steps)
        if optax.tree.get_all_with_path(state.opt_state, "anchor"):
            state = state.replace(opt_state=optax.tree.set(state.opt_state, anchor=state.params))
        states = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(clients)), state)
        for local in range(steps.max()):
            places = [
                batch_indices(seed, int(number * n) + local, size, len(c)) for n, c in zip(steps, clients, strict=True)
            ]
            indices = np.stack([client[place] for client, place in zip(clients, places, strict=True)])
            states = train_clients(states, arrays, indices, local < steps, key)
        return merge(states, jnp.asarray(counts / counts.sum(), jnp.float32), jax.random.fold_in(key, number))

    return train_round


def with_norm(norm: str, setup: TrainSetup, strength: float = 0.0) -> TrainSetup:
    """Return the setup with another normalisation of NORMS, and with FedProx if its strength is not 0."""
    optimizer = optax.chain(stay_near(strength), setup.optimizer) if strength else setup.optimizer
    return setup._replace(model=setup.model.clone(norm=NORMS[norm]), optimizer=optimizer)


def accuracies(model: Model, norm: str, split: str, a: argparse.Namespace) -> np.ndarray:
    """Return the test accuracy of the server after each round, (seeds, rounds)."""
    batch_size = LOCAL_BATCH * (CLIENTS if split == "central" else 1)
    recipe = trials.short_recipe(model, a.data, a.steps, momentum=0.0, batch_size=batch_size)
    strength, local_steps = PROX if "FedProx" in split else 0.0, None if "unequal" in split else LOCAL_STEPS
    trial = trials.make_trial(recipe, a.data_dir, partial(with_norm, norm, strength=strength))
    accuracy, train_round = trials.make_accuracy(trial), make_round(trial, local_steps)
    assert trial.train.arrays is not None
    labels, found = np.asarray(trial.train.arrays.target), []
    for seed in range(a.seeds):
        clients, curve = SPLITS[split](labels, CLIENTS, seed), []
        state = trial.init(trials.keys_of(trial, seed)[0])
        for number in range(max(1, a.steps // LOCAL_STEPS)):
            state = train_round(state, clients, number, seed)
            curve.append(accuracy(state))
        found.append(curve)
    return np.array(found)


def draw(found: dict[tuple[str, str], np.ndarray], data: str, path: Path) -> None:
    """Draw the test accuracy by round, a panel for each normalisation."""
    ends = ", ".join(f"{split} {100 * found['BatchNorm', split][:, -1].mean():.0f} %" for split in SPLITS)
    rounds = found["BatchNorm", "IID"].shape[1]
    title = f"Test accuracy on {data} after {rounds} rounds with BatchNorm: {ends}"
    figure, panels = trials.canvas(title, sharey=True)
    for axes, norm in zip(panels, NORMS, strict=True):
        for split in SPLITS:
            values = 100 * found[norm, split]
            x = np.arange(1, values.shape[1] + 1)
            trials.band(axes, x, values, COLORS[split], split, ls=STYLES[split])
        axes.set(title=norm, xlabel=f"round, of {LOCAL_STEPS} steps each")
        axes.legend(frameon=False, loc="lower right")
    panels[0].set(ylabel="test accuracy (%)", ylim=(0, 101))
    trials.save(figure, path)


def main() -> None:
    a = trials.parse(__doc__, seeds=3, steps=270, name="federated")
    model = Model(name="resnet8")
    found = {(norm, split): accuracies(model, norm, split, a) for norm in NORMS for split in SPLITS}
    rows = []
    for (norm, split), values in found.items():
        first = [int(np.argmax(curve >= 0.9)) + 1 if curve.max() >= 0.9 else None for curve in values]
        ninety = ", ".join("never" if each is None else str(each) for each in first)
        rows.append([f"{norm}, {split}", trials.over_seeds(100 * values[:, -1], 1), ninety])
    trials.table(["", "test accuracy at the end, %", "rounds to 90 %, by seed"], rows)
    draw(found, a.data, a.out)


if __name__ == "__main__":
    script.run(main)
