"""How replicas are trained: each on devices of its own, several in one program, or one after the other."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import jax
from jax.sharding import Mesh

from resnet_jax.errors import InputError
from resnet_jax.train.devices import mesh_of, require_even_split
from resnet_jax.train.drive import Ask, Take
from resnet_jax.train.feed import Item, training_items
from resnet_jax.train.job import abstract, initial, shardings, step_key
from resnet_jax.train.progress import Say
from resnet_jax.train.run import Shared, one_by_one
from resnet_jax.train.stacked import all_at_once, room_for, stacker

SideBySide = Literal["auto", "devices", "vmap", "none"]
SharedOn = Callable[[Mesh], Shared]  # opens what replicas share on these devices, where nobody has yet

_ROUNDS = 5  # of steps that are measured, after one that is not
_WORDS = {"devices": "each on devices of its own", "vmap": "in one program", "none": "one after the other"}


class Way(NamedTuple):
    """How a group of replicas is trained."""

    meshes: Sequence[Mesh]  # of those that are trained at the same time, an entry each
    take: Take
    together: bool = False  # whether their steps are one call


def possible(asked: SideBySide, count: int, batch_size: int, mesh: Mesh) -> list[str]:
    """The ways between which to measure, for so many replicas on these devices; one where it was asked for.

    On CPUs, several replicas in one program are left to those who ask for it: convolutions become grouped ones, which
    take longer to compile, and there about twice the time. Raises InputError for a way that this machine does not have.
    """
    if jax.process_count() > 1 and asked in ("devices", "vmap"):
        raise InputError(f"--side-by-side is {asked}; on several hosts each step takes all devices: leave it out")
    if asked == "devices" and mesh.size == 1:
        raise InputError("--side-by-side is devices; there is one device: leave it out, or take vmap")
    if asked in ("none", "vmap") or jax.process_count() > 1:
        require_even_split(batch_size, mesh)
    if asked != "auto" or jax.process_count() > 1:
        return [asked.replace("auto", "none")]
    if batch_size % mesh.size:
        return ["devices"]
    if count == 1:
        return ["none"]
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return ["none", *(["devices"] if mesh.size > 1 else []), *([] if on_cpu else ["vmap"])]


def choose(names: Sequence[str], count: int, batch_size: int, mesh: Mesh, shared_on: SharedOn, say: Say) -> Way:
    """Of the `possible` ways the one that measures fastest for so many replicas."""
    ways = {}
    for name in names:
        if name == "none":
            ways[name] = alone(mesh, shared_on)
        elif name == "devices":
            ways[name] = Way(slices(mesh, count, batch_size), one_by_one(shared_on))
        else:
            ways[name] = _in_one_program(count, shared_on(mesh), say)
    return _fastest(ways, count, shared_on, say) if len(ways) > 1 else ways[names[0]]


def alone(mesh: Mesh, shared_on: SharedOn) -> Way:
    """One after the other, each on all of these devices."""
    return Way([mesh], one_by_one(shared_on))


def slices(mesh: Mesh, count: int, batch_size: int) -> list[Mesh]:
    """As many equal shares of the devices as there are replicas, or devices, each of a size that divides the batch."""
    devices = list(mesh.devices.flat)
    shares = min(count, len(devices))
    size = max(n for n in range(1, len(devices) // shares + 1) if batch_size % n == 0)
    return [mesh_of(devices[k * size : (k + 1) * size]) for k in range(shares)]


def _in_one_program(count: int, shared: Shared, say: Say) -> Way:
    """As many replicas in one program as the memory has room for, in groups that are about equal."""
    stacked = stacker(shared.job, say)
    groups = math.ceil(count / room_for(abstract_ask(shared), count, stacked))
    if groups == count > 1:
        say("no room for two replicas in the memory of a device: one after the other")
    return Way([shared.job.mesh] * math.ceil(count / groups), all_at_once(shared.compiled, stacked), together=True)


def _fastest(ways: dict[str, Way], count: int, shared_on: SharedOn, say: Say) -> Way:
    """The one that needs least time for a step of all replicas."""
    seconds = {name: math.ceil(count / len(way.meshes)) * seconds_a_round(way, shared_on) for name, way in ways.items()}
    best = min(seconds, key=lambda name: seconds[name])
    measured = ", ".join(f"{_WORDS[name]} {1000 * taken:.1f} ms" for name, taken in seconds.items())
    say(f"a step of all {count} seeds: {measured}; they are trained {_WORDS[best]}")
    return ways[best]


def seconds_a_round(way: Way, shared_on: SharedOn) -> float:
    """Median time of a step of all replicas of a group, on states that are thrown away; infinite without the memory.

    What they are given is read anew for each, as in training.
    """
    shared, seconds = [shared_on(mesh) for mesh in way.meshes], []
    try:
        first = initial(shared[0].job)
        states = [jax.device_put(first, shardings(one.job), may_alias=False) for one in shared]
        feeds = [_items(one, 1 + _ROUNDS) for one in shared]
        keys = [step_key(one.job) for one in shared]
        for _ in range(1 + _ROUNDS):
            start = time.perf_counter()
            given = [(*state, next(items), key, None) for state, items, key in zip(states, feeds, keys, strict=True)]
            taken = way.take([Ask(one.job, 0, arguments) for one, arguments in zip(shared, given, strict=True)])
            states = [(one.state, one.sums) for one in taken]
            jax.block_until_ready([one.told for one in taken])
            seconds.append(time.perf_counter() - start)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf
    return statistics.median(seconds[1:])


def abstract_ask(shared: Shared) -> Ask:
    """The first step of a run, to be compiled and not to be taken: there is no state."""
    return Ask(shared.job, 0, (*abstract(shared.job), next(_items(shared, 1)), step_key(shared.job), None))


def _items(shared: Shared, steps: int) -> Iterator[Item]:
    recipe = shared.job.recipe
    return training_items(shared.train, recipe.seed, recipe.batch_size, range(steps), recipe.augment.repeats)
