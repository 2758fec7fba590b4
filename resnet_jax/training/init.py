"""The state of a setup before its first step, and where it lies on the devices."""

from functools import partial

import jax
from jax import Array

from resnet_jax.parallel.sharding import replicated, shard_leaf
from resnet_jax.recipe import Recipe
from resnet_jax.runtime.compiler_options import compiler_options
from resnet_jax.training.executables import load_or_compile
from resnet_jax.training.network import abstract_variables
from resnet_jax.training.setup import TrainSetup, program_identity
from resnet_jax.training.state import TrainState, first_state, init_state
from resnet_jax.weights.load import Variables

# Compiler options for what runs once, so that compiling it is what takes time
_QUICKLY = {"xla_backend_optimization_level": 1}


def random_keys(recipe: Recipe) -> tuple[Array, Array]:
    """Return the keys of the initial parameters and of the training steps."""
    init_key, step_key = jax.random.split(jax.random.key(recipe.seed))
    return init_key, step_key


def init_fn(setup: TrainSetup, key: Array, pretrained: Variables | None = None) -> TrainState:
    """Return the state before the first step, drawn with the first of the `random_keys`; pure, to be jitted."""
    ema, shape = setup.recipe.ema_decay > 0, setup.dataset.image_shape
    return init_state(key, setup.model, setup.optimizer, shape, pretrained, ema=ema)


def init_train_state(setup: TrainSetup, pretrained: Variables | None = None) -> TrainState:
    """Return the state before the first step, on the devices."""
    on_cpu = setup.mesh.devices.flat[0].platform == "cpu"
    options = compiler_options() | (_QUICKLY if on_cpu else {})
    arguments = random_keys(setup.recipe)[0], pretrained
    init = load_or_compile(
        lambda: jax.jit(partial(init_fn, setup), out_shardings=shardings(setup), compiler_options=options),
        arguments,
        setup.mesh,
        program_identity(setup, "init"),
    )
    return init(*arguments)


def abstract_train_state(setup: TrainSetup) -> TrainState:
    """Return the shapes, dtypes and shardings of `init_train_state` without computing it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        _shapes(setup),
        shardings(setup),
    )


def _shapes(setup: TrainSetup) -> TrainState:
    first = partial(first_state, optimizer=setup.optimizer, ema=setup.recipe.ema_decay > 0)
    return jax.eval_shape(first, abstract_variables(setup.model, setup.dataset.image_shape))


def shardings(setup: TrainSetup) -> TrainState:
    """Return where each array of the state lies."""
    state, everywhere = _shapes(setup), replicated(setup.mesh)
    sharding = partial(shard_leaf, mesh=setup.mesh) if setup.param_sharding == "sharded" else lambda leaf: everywhere
    placed = jax.tree.map(sharding, state)
    return placed.replace(batch_stats=jax.tree.map(lambda _: everywhere, state.batch_stats))
