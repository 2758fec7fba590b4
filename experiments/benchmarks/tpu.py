"""The training step of ResNet-50 on TPU slices that are not at hand: this library's beside one in plain flax.

    python -m experiments.benchmarks.tpu v5e:2x4 v5p:2x2x1 v4:2x2x1

Both are compiled by libtpu on a CPU (`pip install -e '.[preflight]'`, in an environment of its own), minutes each, for
the recipe of preflight.py: bfloat16, 1,024 images a step. The plain step is the one of flax's examples: nn.BatchNorm
over the whole batch, SGD with momentum and weight decay, images that come as floats. Printed is what the compiler
knows: how often chips meet, what that returns to each, and per image the bytes that XLA counts, those of them in HBM,
and temporaries.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from experiments import script
from experiments.benchmarks.plain_flax import FlaxNetwork, sgd_step
from experiments.benchmarks.preflight import recipe
from resnet_jax.model.resnet import ResNet
from resnet_jax.model.zoo import published
from resnet_jax.preflight import abstract_batch, data_of, describe
from resnet_jax.train.compiled import collectives, memory_traffic
from resnet_jax.train.devices import mesh_of, replicated, split
from resnet_jax.train.job import abstract, make_advance, prepare

WAYS = ("ours, groups of 32", "ours, whole batch", "plain flax, whole batch")


def ours(topology: str, group: int | None) -> jax.stages.Compiled:
    """The step that `resnet-jax train` takes, for a slice."""
    grouped = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, norm_group=group))
    job = prepare(grouped, data_of(grouped, Path("data"))[0])._replace(mesh=mesh_of(describe(topology)))
    key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=replicated(job.mesh))
    return make_advance(job).lower(*abstract(job), abstract_batch(job), key, None).compile()


def plain(topology: str) -> jax.stages.Compiled:
    """The step of flax's examples, for a slice."""
    like = published(recipe.model.name)
    assert isinstance(like, ResNet)
    model, mesh = FlaxNetwork(like, jnp.bfloat16), mesh_of(describe(topology))
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.4, 0.9, nesterov=True))

    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *like.input_shape)))
    state = variables["params"], variables["batch_stats"], jax.eval_shape(optimizer.init, variables["params"])
    everywhere, rows = replicated(mesh), split(mesh)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)
    images = jax.ShapeDtypeStruct((recipe.batch_size, *like.input_shape), jnp.float32, sharding=rows)
    labels = jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32, sharding=rows)
    step = jax.jit(sgd_step(model, optimizer), donate_argnums=(0, 1, 2))
    return step.lower(*state, images, labels).compile()


def row(topology: str, way: str) -> str:
    """A line of the table."""
    compiled = plain(topology) if way == WAYS[2] else ours(topology, 32 if way == WAYS[0] else None)
    images = recipe.batch_size / len(describe(topology))
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    assert memory is not None, "which the compiler for TPUs always knows"
    meetings = collectives(text)["all-reduce"]
    accessed = (compiled.cost_analysis() or {})["bytes accessed"]
    figures = (accessed, memory_traffic(text), memory.temp_size_in_bytes)
    cells = (f"{figure / images / 1e6:.1f}" for figure in figures)
    return f"| {topology} | {way} | {meetings.count} | {meetings.bytes / 1e6:.1f} | {' | '.join(cells)} |"


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("topologies", nargs="+")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    arguments = parser.parse_args()
    print("| slice | way | all-reduces | MB | MB accessed an image | in HBM | temporaries |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for topology in arguments.topologies:
        for way in arguments.ways:
            print(row(topology, way), flush=True)


if __name__ == "__main__":
    script.run(main, large_pages=False)
