"""The training step of ResNet-50 compiled for chips that are not there: this library's beside one in plain flax.

    python -m experiments.benchmarks.ahead v5e:2x4 h200:1 [--batch 128] [--compile "ours" ...]

libtpu, or jax's CUDA plugin, compiles on a CPU (preflight.md says how to install them, in an environment of its own),
which takes minutes a row, for the recipe of preflight.py in bfloat16, 128 images per chip. The plain step is that of
flax's examples: nn.BatchNorm over the whole batch, SGD with momentum and weight decay, images as floats. The table says
what the compiler knows: all-reduces and their output per chip; per image the bytes in memory and temporaries; and the
kernels that a step starts on a GPU. Nothing is run.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import script
from experiments.benchmarks import preflight
from experiments.benchmarks.plain_flax import FlaxNetwork, sgd_step
from resnet_jax.models.layers import SpaceToDepthConv
from resnet_jax.models.resnet import ResNet
from resnet_jax.parallel.sharding import batch_sharding, mesh_of, replicated
from resnet_jax.recipe import Recipe
from resnet_jax.tools.chips import slice_of
from resnet_jax.tools.hlo import collectives, kernels, memory_traffic
from resnet_jax.tools.preflight import data_of, lower_step
from resnet_jax.tools.topology import describe
from resnet_jax.training.setup import make_setup
from resnet_jax.weights.load import create_model


class Ours(NamedTuple):
    """A way to compile the step of `resnet-jax train`."""

    group: int | None = 32
    """Images over which BatchNorm takes statistics; None is the whole batch."""
    space_to_depth: bool = False
    """Whether the stem is a 4x4 convolution of blocks of 2x2 pixels."""
    options: tuple[tuple[str, str | bool], ...] = ()
    """Of the compiler, by name; for GPUs."""


STEPS: dict[str, Ours | None] = {
    "ours": Ours(),
    "ours, whole batch": Ours(None),
    "plain flax, whole batch": None,
    "ours, stem by space to depth": Ours(space_to_depth=True),
    "ours, fused convolutions": Ours(options=(("xla_gpu_experimental_enable_conv_fusion", True),)),
    "ours, NHWC forced": Ours(options=(("xla_gpu_force_conv_nhwc", True),)),
    "ours, cuDNN fusion level 2": Ours(options=(("xla_gpu_cudnn_gemm_fusion_level", "2"),)),
}
# The others are levers, tried on request
DEFAULT = ("ours", "plain flax, whole batch")


def compile_ours(topology: str, recipe: Recipe, how: Ours) -> jax.stages.Compiled:
    """Compile the step of `resnet-jax train` for chips."""
    grouped = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, norm_group_size=how.group))
    setup = make_setup(grouped, data_of(grouped, Path("data"))[0])._replace(mesh=mesh_of(describe(topology)))
    if how.space_to_depth:
        setup = setup._replace(model=setup.model.clone(conv=SpaceToDepthConv))
    return lower_step(setup, None).compile(compiler_options=dict(how.options) or None)


def compile_plain(topology: str, recipe: Recipe) -> jax.stages.Compiled:
    """Compile the step of flax's examples for chips."""
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


def row(topology: str, step: str, per_chip: int) -> str:
    """Return a row of the table."""
    chips, how = len(describe(topology)), STEPS[step]
    recipe = dataclasses.replace(preflight.recipe, batch_size=per_chip * chips)
    try:
        compiled = compile_ours(topology, recipe, how) if how else compile_plain(topology, recipe)
    except jax.errors.JaxRuntimeError as error:
        return f"| {topology} | {step} | {str(error).splitlines()[0][:80]} |"
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    assert memory is not None, "these compilers always know it"
    reduced, started = collectives(text).get("all-reduce"), kernels(text)
    figures = (memory_traffic(text), memory.temp_size_in_bytes)
    cells = [f"{reduced.count}", f"{reduced.bytes / 1e6:.1f}"] if reduced else ["0", ""]
    cells += [f"{value / per_chip / 1e6:.1f}" for value in figures]
    gpu = slice_of(topology)[0].gpu
    cells += [f"{started.get(kind, 0):,}" if gpu else "" for kind in ("cuDNN", "fusions", "copies")]
    return f"| {topology} | {step} | {' | '.join(cells)} |"


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("topologies", nargs="+")
    parser.add_argument("--batch", type=script.positive, default=128, help="images per chip")
    parser.add_argument("--compile", nargs="+", choices=STEPS, default=DEFAULT)
    arguments = parser.parse_args()
    print("| chips | step | all-reduces | MB | MB in memory per image | temporaries | cuDNN | fusions | copies |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for topology in arguments.topologies:
        for step in arguments.compile:
            print(row(topology, step, arguments.batch), flush=True)


if __name__ == "__main__":
    script.run(main, large_pages=False)
