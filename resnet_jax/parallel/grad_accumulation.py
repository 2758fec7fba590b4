"""Gradient accumulation: split a batch into microbatches and sum their gradients.

This changes memory and speed, never the curve. A batch consists of units, consecutive examples that have to stay
together: a group of BatchNorm, a pair that mixup mixes. If every device holds whole units in every microbatch, each
device sums its own microbatches and the devices meet once per step. If a unit lies on several devices, the compiler
lets them meet where they must.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from resnet_jax.errors import InputError
from resnet_jax.parallel.sharding import batch_sharding

# (function (fixed, batch) -> tree, fixed, batch) -> the sum of the tree over the microbatches
Accumulate = Callable[[Callable[[Any, Any], Any], Any, Any], Any]


def valid_accumulation_steps(batch_size: int, unit: int, devices: int) -> list[int]:
    """Return the numbers of microbatches that keep units whole and are the same on every device.

    Example:
        >>> valid_accumulation_steps(64, 16, 8)
        [1, 2, 4]
    """
    steps = range(1, batch_size // unit + 1)
    return [n for n in steps if batch_size % (n * unit) == 0 and batch_size % (n * devices) == 0]


def require_accumulation_steps(batch_size: int, unit: int, devices: int, steps: int) -> None:
    """Raise InputError if this number of microbatches cuts a unit or differs between devices."""
    possible = valid_accumulation_steps(batch_size, unit, devices)
    if steps not in possible:
        near = min(possible, key=lambda n: (abs(n - steps), n))
        raise InputError(
            f"--grad-accum-steps is {steps}; the batch of {batch_size}, in groups of {unit}, on devices: {devices}, can"
            f" be split into {', '.join(map(str, possible))}: take {near}, or a smaller model.norm_group_size"
        )


def accumulate_gradients(mesh: Mesh, steps: int, unit: int, *, unroll: bool | None = None) -> Accumulate | None:
    """Return a function that sums over microbatches on a mesh; None for one microbatch on one device.

    Args:
        mesh: with the axis "data".
        steps: number of microbatches.
        unit: consecutive examples that stay together.
        unroll: write the microbatches out instead of looping; None unrolls on CPUs, where convolutions in loops are
            slow.
    """
    if mesh.size == 1 and steps == 1:
        return None
    unroll = mesh.devices.flat[0].platform == "cpu" if unroll is None else unroll

    def accumulate(function: Callable[[Any, Any], Any], fixed: Any, batch: Any) -> Any:
        rows = jax.tree.leaves(batch)[0].shape[0]
        if mesh.size == 1 or rows % (mesh.size * steps * unit):
            return _sum(partial(function, fixed), _split(batch, steps, mesh), unroll)

        def on_device(fixed: Any, batch: Any) -> Any:
            # Marked as varying, so that gradients stay on the device until all microbatches are summed
            fixed = lax.pcast(fixed, "data", to="varying")
            return _sum_over_devices(_sum(partial(function, fixed), _split(batch, steps), unroll))

        return jax.shard_map(on_device, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())(fixed, batch)

    return accumulate


def _sum_over_devices(tree: Any) -> Any:
    """Sum a tree over the axis "data" of a mesh, its vectors as one array: compilers join at most 256 in a message."""
    leaves, structure = jax.tree.flatten(tree)
    is_vector = [leaf.ndim < 2 and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    vector, split = ravel_pytree([leaf for leaf, small in zip(leaves, is_vector, strict=True) if small])
    others = [leaf for leaf, small in zip(leaves, is_vector, strict=True) if not small]
    vector, others = lax.psum((vector, others), "data")
    parts = {True: iter(split(vector)), False: iter(others)}
    return jax.tree.unflatten(structure, [next(parts[small]) for small in is_vector])


def _split(batch: Any, steps: int, mesh: Mesh | None = None) -> Any:
    """Reshape every array (b, ...) to (steps, b / steps, ...), sharded over axis 1 if there is a mesh."""

    def split(x: Any) -> Any:
        x = x.reshape(steps, x.shape[0] // steps, *x.shape[1:])
        return x if mesh is None else lax.with_sharding_constraint(x, batch_sharding(mesh, axis=1))

    return jax.tree.map(split, batch)


def _sum(function: Callable[[Any], Any], batch: Any, unroll: bool) -> Any:
    """Sum the function over the leading axis of the batch."""
    steps = jax.tree.leaves(batch)[0].shape[0]
    first = function(jax.tree.map(lambda x: x[0], batch))
    if steps == 1:
        return first
    if unroll:
        rest = (jax.tree.map(lambda x, n=n: x[n], batch) for n in range(1, steps))
        return reduce(lambda total, part: _add_next(function, total, part), rest, first)
    rest = jax.tree.map(lambda x: x[1:], batch)
    return lax.scan(lambda total, part: (_add(total, function(part)), None), first, rest)[0]


def _add_next(function: Callable[[Any], Any], total: Any, part: Any) -> Any:
    # One microbatch after the other; otherwise their memory would add up
    total, part = lax.optimization_barrier((total, part))
    return _add(total, function(part))


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)
