"""The training step of ResNet-50 compiled for TPU slices: this library's beside one in plain flax.

    python -m experiments.benchmarks.tpu v5e:2x4 v5p:2x2x1 v4:2x2x1

libtpu compiles both on a CPU (`pip install -e '.[preflight]'`, in an environment of its own), which takes minutes each,
for the recipe of preflight.py: bfloat16, 1,024 images per step. The plain step is that of flax's examples: nn.BatchNorm
over the whole batch, SGD with momentum and weight decay, images as floats. The table says what the compiler knows: the
number of all-reduces and their output per chip, and per image the bytes that XLA counts, those in HBM, and temporaries.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from experiments import script
from experiments.benchmarks.plain_flax import FlaxNetwork, sgd_step
from experiments.benchmarks.preflight import recipe
from resnet_jax.models.resnet import ResNet
from resnet_jax.parallel.sharding import batch_sharding, mesh_of, replicated
from resnet_jax.tools.hlo import collectives, memory_traffic
from resnet_jax.tools.preflight import abstract_batch, data_of, describe
from resnet_jax.training.setup import abstract_train_state, make_setup, make_train_step
from resnet_jax.weights.load import create_model

STEPS = ("ours, groups of 32", "ours, whole batch", "plain flax, whole batch")


def compile_ours(topology: str, group: int | None) -> jax.stages.Compiled:
    """Compile the step of `resnet-jax train` for a slice."""
    grouped = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, norm_group_size=group))
    setup = make_setup(grouped, data_of(grouped, Path("data"))[0])._replace(mesh=mesh_of(describe(topology)))
    key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=replicated(setup.mesh))
    return make_train_step(setup).lower(abstract_train_state(setup), abstract_batch(setup), key).compile()


def compile_plain(topology: str) -> jax.stages.Compiled:
    """Compile the step of flax's examples for a slice."""
    like = create_model(recipe.model.name)
    assert isinstance(like, ResNet)
    model, mesh = FlaxNetwork(like, jnp.bfloat16), mesh_of(describe(topology))
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.4, 0.9, nesterov=True))

    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *like.input_shape)))
    state = variables["params"], variables["batch_stats"], jax.eval_shape(optimizer.init, variables["params"])
    everywhere, rows = replicated(mesh), batch_sharding(mesh)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)
    images = jax.ShapeDtypeStruct((recipe.batch_size, *like.input_shape), jnp.float32, sharding=rows)
    labels = jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32, sharding=rows)
    step = jax.jit(sgd_step(model, optimizer), donate_argnums=(0, 1, 2))
    return step.lower(*state, images, labels).compile()


def row(topology: str, step: str) -> str:
    """Return a row of the table."""
    ours = step != STEPS[2]
    compiled = compile_ours(topology, 32 if step == STEPS[0] else None) if ours else compile_plain(topology)
    images = recipe.batch_size / len(describe(topology))
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    assert memory is not None, "the compiler for TPUs always knows it"
    reduced = collectives(text)["all-reduce"]
    accessed = (compiled.cost_analysis() or {})["bytes accessed"]
    figures = (accessed, memory_traffic(text), memory.temp_size_in_bytes)
    cells = (f"{figure / images / 1e6:.1f}" for figure in figures)
    return f"| {topology} | {step} | {reduced.count} | {reduced.bytes / 1e6:.1f} | {' | '.join(cells)} |"


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("topologies", nargs="+")
    parser.add_argument("--compile", nargs="+", choices=STEPS, default=STEPS)
    arguments = parser.parse_args()
    print("| slice | step | all-reduces | MB | MB accessed per image | in HBM | temporaries |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for topology in arguments.topologies:
        for step in arguments.compile:
            print(row(topology, step), flush=True)


if __name__ == "__main__":
    script.run(main, large_pages=False)
