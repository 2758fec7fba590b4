"""Train with DP-SGD: the step of all other runs, with another gradient, another sampling and a record of the privacy.

A run is a function of its recipe, its seed and its noise. On other devices it is the same but for rounding, and
interrupted it resumes from its checkpoint bit for bit. Its rows have no training loss: that would be another look at
the data, which epsilon does not count.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from experiments.privacy.accounting import Privacy, epsilon_after
from experiments.privacy.clipping import PADDING, logits_of, noisy_sum, private_objective, require_independent_examples
from experiments.privacy.sampler import poisson_batch
from resnet_jax import InputError, Recipe, TrainState, compiler_options, train_step
from resnet_jax.checkpoint.checkpoint import open_checkpoints, restore, save
from resnet_jax.input_pipeline.device_input import DeviceArrays, IndexedBatch, open_device_split
from resnet_jax.input_pipeline.preprocess import Preprocess, make_preprocess
from resnet_jax.models.cpu_ops import cpu_kernels
from resnet_jax.parallel.grad_accumulation import accumulate_gradients
from resnet_jax.parallel.sharding import batch_sharding, place, replicate, replicated
from resnet_jax.run_dir.files import append_metrics, identity, init_run_dir, restore_metrics
from resnet_jax.runtime.safe_files import write_atomic
from resnet_jax.training.evaluate import evaluate_split, make_eval_step
from resnet_jax.training.init import init_fn, random_keys, shardings
from resnet_jax.training.network import abstract_variables
from resnet_jax.training.setup import TrainSetup
from resnet_jax.training.sources import Sources
from resnet_jax.training.state import update_ema, with_ema_params

# (state, inputs, key of the run, noise multiplier) -> (state, sums); the state is donated
PrivateStep = Callable[[TrainState, IndexedBatch, Array, Array], tuple[TrainState, dict[str, Any]]]


class PrivateTraining(NamedTuple):
    """What runs of any seed and noise have in common, compiled once."""

    init: Callable[[Array], TrainState]
    step: PrivateStep
    arrays: DeviceArrays
    """The training split and, after it, the row that is no example."""
    evaluate: Callable[[TrainState], dict[str, float]]
    """State -> accuracy and loss on the test split."""
    mesh: Mesh
    copies: int
    start: Callable[[Path, int], dict[str, Any]] = lambda out, seed: {}
    """Writes the run directory; returns what a checkpoint keeps of it."""


def private_step(
    state: TrainState, inputs: IndexedBatch, key: Array, noise_multiplier: Array, **parts: Any
) -> tuple[TrainState, dict[str, Any]]:
    """Take a step of DP-SGD; `parts` are those of `resnet_jax.train_step`, with a `private_objective`."""
    rule = noisy_sum(noise_multiplier, jax.random.fold_in(key, state.step))
    return train_step(state, inputs, key, gradient_rule=rule, **parts)


def make_step(
    apply: Callable[[Any, Array], Array],
    optimizer: optax.GradientTransformation,
    preprocess: Preprocess,
    mesh: Mesh,
    privacy: Privacy,
    *,
    clip_norm: float = 1.0,
    copies: int = 1,
    microbatches: int = 1,
    update_ema: Callable[[TrainState], dict[str, Any]] | None = None,
    out: Any = None,
) -> PrivateStep:
    """Return the jitted step of all runs with this sampling.

    Args:
        apply: (params, images) -> logits.
        optimizer: of the parameters.
        preprocess: raw to network input.
        mesh: over whose devices the examples are sharded.
        privacy: its rate, size and rows; the noise is an argument of the step.
        clip_norm: largest norm of the gradient of an example.
        copies: augmented copies of each example.
        microbatches: on each device, one after the other, for memory.
        update_ema: as in `train_step`.
        out: where the arrays of the state lie; None is whole on every device.
    """
    objective = private_objective(
        apply, clip_norm=clip_norm, expected_batch=privacy.expected_batch, rows=privacy.rows, copies=copies
    )
    step = partial(
        private_step,
        objective=objective,
        optimizer=optimizer,
        preprocess=preprocess,
        accumulate=accumulate_gradients(mesh, microbatches, copies),
        update_ema=update_ema,
    )

    def traced(*arguments: Any) -> Any:
        # Kernels written for one network compile for minutes if each example has a gradient
        with cpu_kernels(False):
            return step(*arguments)

    return jax.jit(
        traced,
        donate_argnums=0,
        out_shardings=(replicated(mesh) if out is None else out, replicated(mesh)),
        compiler_options=compiler_options(),
    )


def prepare(
    setup: TrainSetup, sources: Sources, privacy: Privacy, *, clip_norm: float = 1.0, copies: int = 1
) -> PrivateTraining:
    """Return the private training of a setup.

    Args:
        setup: of a recipe; its batch size is the expected one of `privacy`.
        sources: its data.
        privacy: as `make_privacy` returns it.
        clip_norm: largest norm of the gradient of an example.
        copies: augmented copies of each example.

    Raises:
        InputError: The network has BatchNorm.
    """
    recipe, mesh = setup.recipe, setup.mesh
    require_independent_examples(abstract_variables(setup.model, setup.dataset.image_shape), recipe.model.name)
    train, held = (open_device_split(source, mesh) for source in (sources.train, sources.evaluation))
    if train.arrays is None:
        raise InputError(f"{recipe.data.name} does not fit on a device, from which private training draws")
    ema = partial(update_ema, decay=recipe.ema_decay, every=recipe.ema_update_every, warmup=recipe.ema_warmup)
    step = make_step(
        logits_of(setup.model),
        setup.optimizer,
        make_preprocess(recipe, setup.dataset.train_size, len(setup.dataset.classes), transform=setup.transform),
        mesh,
        privacy,
        clip_norm=clip_norm,
        copies=copies,
        microbatches=setup.grad_accum_steps,
        update_ema=ema if recipe.ema_decay else None,
        out=shardings(setup),
    )
    eval_step = make_eval_step(setup.model, recipe.data, mesh, setup.metrics)

    def evaluate(state: TrainState) -> dict[str, float]:
        return evaluate_split(eval_step, setup.metrics, with_ema_params(state), held)

    def start(out: Path, seed: int) -> dict[str, Any]:
        own = replace(recipe, seed=seed)
        init_run_dir(out, own, setup.dataset)
        return identity(own, setup.dataset)

    init = jax.jit(partial(init_fn, setup), out_shardings=shardings(setup), compiler_options=compiler_options())
    return PrivateTraining(init, step, with_padding(train.arrays, mesh), evaluate, mesh, copies, start)


def with_padding(arrays: DeviceArrays, mesh: Mesh) -> DeviceArrays:
    """Return the examples and, after them, a row of zeros whose target is PADDING, on the devices."""
    image, target = np.asarray(arrays.image), np.asarray(arrays.target)
    image = np.concatenate([image, np.zeros_like(image[:1])])
    return DeviceArrays(*replicate((image, np.append(target, PADDING).astype(np.int32)), mesh))


def record(privacy: Privacy) -> dict[str, Any]:
    """Return the guarantee as JSON values; an infinite epsilon is None."""
    return {name: value if math.isfinite(value) else None for name, value in privacy._asdict().items()}


def train_private(
    training: PrivateTraining,
    privacy: Privacy,
    seed: int,
    out: Path,
    *,
    every: int,
    stop_at: int | None = None,
    log: Callable[[str], None] = print,
) -> tuple[TrainState, list[dict[str, Any]]]:
    """Train in a run directory, from its newest checkpoint if there is one; return the state and all rows.

    Args:
        training: of `prepare`.
        privacy: noise, steps and sampling.
        seed: of everything random.
        out: the run directory; privacy.json and metrics.jsonl have the guarantee.
        every: steps between rows, each with a checkpoint.
        stop_at: step after which to stop and save, as if interrupted.
        log: is given a line for each row.

    Raises:
        InputError: The directory holds another run, or a step draws more examples than fit.
    """
    facts = record(privacy)
    init_key, key = random_keys(Recipe(seed=seed))
    state, rows = training.init(init_key), list[dict[str, Any]]()
    restored = restore(out / "checkpoints", _abstract(state), foreign=partial(_foreign, {**facts, "seed": seed}))
    about = {"privacy": {**facts, "seed": seed}, **training.start(out, seed)}
    if restored is not None:
        state, rows = restored[0], restored[1]["rows"]
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "privacy.json", json.dumps(facts, indent=2) + "\n")
    restore_metrics(out, rows, log)
    noise, last = jnp.float32(privacy.noise_multiplier), min(privacy.steps, stop_at or privacy.steps)
    with open_checkpoints(out / "checkpoints") as checkpoints:
        for step in range(int(state.step), last):
            drawn = poisson_batch(seed, step, privacy.size, privacy.rate, privacy.rows)
            indices = place(np.repeat(drawn, training.copies), batch_sharding(training.mesh))
            state, _ = training.step(state, IndexedBatch(training.arrays, indices, None), key, noise)
            if (step + 1) % every == 0 or step + 1 == privacy.steps:
                rows.append(_row(step + 1, privacy, training.evaluate(state)))
                append_metrics(out, rows[-1])
                log(format_row(rows[-1], privacy))
            if (step + 1) % every == 0 or step + 1 == last:
                save(checkpoints, state, {"rows": list(rows), **about})
    return state, rows


def _row(step: int, privacy: Privacy, values: Mapping[str, Any]) -> dict[str, Any]:
    epsilon = epsilon_after(privacy, step)
    measured = {f"test/{name}": value for name, value in values.items()}
    return {"step": step, "epsilon": epsilon if math.isfinite(epsilon) else None, "delta": privacy.delta, **measured}


def format_row(row: Mapping[str, Any], privacy: Privacy) -> str:
    """Return a row as a line for people."""
    guarantee = "no guarantee" if row["epsilon"] is None else f"epsilon {row['epsilon']:.3f} at delta {row['delta']:g}"
    return f"{row['step']}/{privacy.steps}  test accuracy {100 * row['test/accuracy']:.2f} %  {guarantee}"


def _abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _foreign(privacy: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """Return why a checkpoint is that of another run, or nothing."""
    return "" if saved.get("privacy") == dict(privacy) else "of another guarantee or seed"
