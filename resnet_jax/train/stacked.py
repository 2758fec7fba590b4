"""Several replicas in one program: `jax.vmap` over an axis of replicas, on devices that one of them leaves idle.

Each keeps its own state, as if it were alone: within the program the states are stacked, and taken apart again. A step
is a function of (seed, step, example), and the step is in the state, so replicas need not be at the same one.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.backend import compiler_options
from resnet_jax.train.compiling import Compiled, bytes_of, limit_of
from resnet_jax.train.devices import replicated
from resnet_jax.train.drive import Ask, Take, Taken, with_clock
from resnet_jax.train.feed import Item, Pick
from resnet_jax.train.job import Job, Told, shardings, train_size_at, unjitted_advance
from resnet_jax.train.progress import Say
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import Sums

# (asks) -> their steps as one compiled function, and the seconds that compiling it took now
Stacked = Callable[[Sequence[Ask]], tuple[jax.stages.Compiled, float]]


def make_stacked(job: Job, count: int, size: int | None = None) -> jax.stages.Wrapped:
    """Jitted (states, totals, items of the feed, keys) -> [(state, totals, Told), ...]: tuples of `count` replicas.

    States and totals are donated. Where the items are places in a split on the devices, it must be the same for all.
    """
    advance = unjitted_advance(job, size)
    where = [(*shardings(job), replicated(job.mesh))] * count

    @partial(jax.jit, donate_argnums=(0, 1), out_shardings=where, compiler_options=compiler_options())
    def advance_all(
        states: Sequence[TrainState], sums: Sequence[Sums], items: Sequence[Item], keys: Sequence[jax.Array]
    ) -> list[tuple[TrainState, Sums, Told]]:
        item, axes = _shared_stack(items)
        given = _stack(states), _stack(sums), item, _stack(keys), None
        after = jax.vmap(advance, in_axes=(0, 0, axes, 0, None))(*given)
        return [jax.tree.map(lambda leaf, k=k: leaf[k], after) for k in range(count)]

    return advance_all


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _shared_stack(items: Sequence[Item]) -> tuple[Item, Any]:
    """Items as one, and which of its arrays have an axis of replicas: all but the split that lies on the devices."""
    first = items[0]
    if not isinstance(first, Pick):
        return _stack(items), 0
    indices = jnp.stack([jnp.asarray(item.indices) for item in items])
    return Pick(first.data, indices, None), Pick(None, 0, None)  # type: ignore[arg-type]


def stacker(job: Job, say: Say) -> Stacked:
    """Compiles once for each number of replicas and each size of their images."""
    known: dict[tuple[int, int | None], jax.stages.Compiled] = {}

    def stacked(asks: Sequence[Ask]) -> tuple[jax.stages.Compiled, float]:
        kind, start = (len(asks), _size_of(asks[0])), time.perf_counter()
        if kind in known:
            return known[kind], 0.0
        known[kind] = make_stacked(job, *kind).lower(*_arguments(asks)).compile()
        seconds = time.perf_counter() - start
        say(f"compiled in {seconds:.1f} s for {len(asks)} side by side")
        return known[kind], seconds

    return stacked


def all_at_once(compiled: Compiled, stacked: Stacked) -> Take:
    """Takes the steps that are asked for in one call for each size of their images; one by itself as it always is."""

    def take(asks: list[Ask]) -> list[Taken]:
        taken: dict[int, Any] = {}
        seconds = 0.0
        for size in {_size_of(ask) for ask in asks}:
            places = [place for place, ask in enumerate(asks) if _size_of(ask) == size]
            chosen = [asks[place] for place in places]
            if len(chosen) == 1:
                step, more = compiled(chosen[0].step, chosen[0].given)
                after = [step(*chosen[0].given)]
            else:
                together, more = stacked(chosen)
                after = together(*_arguments(chosen))
            seconds += more
            taken |= zip(places, after, strict=True)
        return [with_clock(taken[place], seconds) for place in range(len(asks))]

    return take


def room_for(ask: Ask, count: int, stacked: Stacked) -> int:
    """How many such replicas, of `count`, fit side by side into the memory of a device as the compiler says; or 1."""
    limit = limit_of(ask.job.mesh)
    while count > 1:
        used = math.inf
        try:
            used = bytes_of(stacked([ask] * count)[0])
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        if used <= limit:
            return count
        count = min(count - 1, max(count // 2, int(count * limit / used)))
    return 1


def _size_of(ask: Ask) -> int | None:
    return train_size_at(ask.job.recipe, ask.job.dataset.train_size, ask.step)


def _arguments(asks: Sequence[Ask]) -> tuple[Any, ...]:
    states, sums, items, keys, _ = zip(*(ask.given for ask in asks), strict=True)
    return states, sums, items, keys
