"""One recipe with several seeds: replicas, each an ordinary run in a directory of its own, trained side by side.

How they lie on the devices decides when they are done, and not what they become. One after the other, or each on
devices of its own, a replica takes the steps of its single run on as many devices, by the same program: the same bits.
Several in one program are the same but for rounding.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh
from rich.console import Console

from resnet_jax.data.source import Source
from resnet_jax.errors import InputError, MachineError
from resnet_jax.recipe import Recipe, check
from resnet_jax.train.begin import Begun, Cut, begin, concrete
from resnet_jax.train.compiling import compiler
from resnet_jax.train.devices import data_mesh, on_first_host
from resnet_jax.train.directory import is_finished, require_same_run
from resnet_jax.train.feed import on_mesh
from resnet_jax.train.habits import Feeding, Habits, require_sense
from resnet_jax.train.job import Shard, Sources, open_sources
from resnet_jax.train.lock import hold
from resnet_jax.train.progress import Lines, Say
from resnet_jax.train.run import Result, already_done, speaker, tell_start, train_together
from resnet_jax.train.shared import Shared, open_data, share
from resnet_jax.train.stop import obey, stop_requested
from resnet_jax.train.ways import SideBySide, Way, alone, choose, possible, slices

Ended = Result | InputError | MachineError


class Replicas(NamedTuple):
    """What replicas have in common."""

    recipes: Mapping[int, Recipe]  # by seed
    out: Path
    sources: Sources
    cut: Cut  # of a batch, for one replica that has all devices
    habits: Habits
    feeding: Feeding
    console: Console
    shared: dict[Mesh, Shared]  # on those devices that have been used so far
    bad: dict[int, str]  # training images that could not be read
    stop_signal: Callable[[], int]


def train_seeds(recipe: Recipe, seeds: Sequence[int], out: Path, **options: Any) -> list[Result]:
    """Trains a recipe with each of the seeds in OUT/seed0, OUT/seed1, ...; returns how each ended, in their order.

    Each is a run like that of `train_recipe`: those that have begun go on, and those that have ended are left alone.
    `options` are those of `train_each`. The states are NumPy arrays.

    Raises what `train_recipe` does; where a replica cannot go on, the first such error, after the others have ended.
    """
    ended = train_each(recipe, seeds, out, **options)
    for result in ended.values():
        if isinstance(result, Exception):
            raise result
    return [result for result in ended.values() if isinstance(result, Result)]


def train_each(
    recipe: Recipe,
    seeds: Sequence[int],
    out: Path,
    *,
    data_dir: Path = Path("data"),
    devices: int | None = None,
    accumulate: int | Literal["auto"] = 1,
    shard: Shard = "nothing",
    side_by_side: SideBySide = "auto",
    habits: Habits = Habits(),
    feeding: Feeding = Feeding(),
    splits: tuple[Source, Source] | None = None,
    console: Console | None = None,
) -> dict[int, Ended]:
    """As `train_seeds`; by seed how each ended, or the error that stopped it and none of the others.

    After a signal, seeds that have not begun are left out.

    Args:
        recipe: everything that decides the results, but for its seed.
        seeds: different ones.
        out: the directory of their run directories.
        side_by_side: "devices", each on devices of its own; "vmap", in one program, as many as the memory has room for;
            "none", one after the other on all devices; or "auto", what measures fastest.

    The others are those of `train_recipe`. Raises InputError, having written nothing, where recipe, seeds, data,
    devices or directories do not fit each other.
    """
    require_sense(habits, feeding)
    require_seeds(seeds)
    recipes = {seed: check(replace(recipe, seed=seed)) for seed in seeds}
    recipe = recipes[seeds[0]]
    if (out / "recipe.json").is_file():
        raise InputError(f"{out}: is a run itself; choose another --out for its seeds")
    with ExitStack() as locks:
        stop_signal = locks.enter_context(stop_requested())
        for seed in seeds:
            locks.enter_context(hold(run_of(out, seed)))
        sources, mesh = open_sources(recipe, data_dir, splits), data_mesh(devices)
        obey(stop_signal())
        todo = [seed for seed in seeds if not _is_finished(run_of(out, seed))]
        names = possible(side_by_side, len(todo), recipe.batch_size, mesh)
        one = Cut(slices(mesh, 1, recipe.batch_size)[0], accumulate, shard)
        concrete(recipe, sources, one)  # for its errors, before anything is written
        for seed in seeds:
            require_same_run(run_of(out, seed), recipes[seed], sources.dataset)
        console = console or Lines(quiet=not on_first_host())
        replicas = Replicas(recipes, out, sources, one, habits, feeding, console, {}, {}, stop_signal)
        return _train(replicas, todo, names, mesh)


def require_seeds(seeds: Sequence[int]) -> None:
    """Raises InputError where there is no seed, or one twice."""
    if not seeds:
        raise InputError("--seeds names none; give at least one")
    seed, times = Counter(seeds).most_common(1)[0]
    if times > 1:
        raise InputError(f"--seeds names {seed} twice; give each once")


def run_of(out: Path, seed: int) -> Path:
    """The run directory of a seed."""
    return out / f"seed{seed}"


def free_folder(stem: Path, recipe: Recipe, seeds: Sequence[int]) -> Path:
    """The first of STEM, STEM-2, STEM-3, ... that does not exist, or whose runs of these seeds are of this recipe."""
    for number in itertools.count(1):
        folder = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
        with suppress(InputError):
            for seed in seeds if folder.exists() else ():
                require_same_run(run_of(folder, seed), replace(recipe, seed=seed))
            return folder
    raise AssertionError("unreachable")


def _train(replicas: Replicas, todo: list[int], names: Sequence[str], mesh: Mesh) -> dict[int, Ended]:
    """Trains group by group, until a signal stops one; those that have ended come first, and have nothing to do."""
    ended, shared_on = dict[int, Ended](), partial(_shared_on, replicas)
    for seed in replicas.recipes:
        if seed not in todo:
            ended |= _train_group(replicas, [seed], alone(replicas.cut.mesh, shared_on))
    if todo:
        batch_size = replicas.recipes[todo[0]].batch_size
        way = choose(names, len(todo), batch_size, mesh, shared_on, speaker(replicas.console))
        obey(replicas.stop_signal())  # no replica has taken a step
        for other in replicas.shared.keys() - set(way.meshes):
            del replicas.shared[other]  # where others were measured
    while todo and not any(isinstance(end, Result) and end.signal for end in ended.values()):
        group, todo = todo[: len(way.meshes)], todo[len(way.meshes) :]
        ended |= _train_group(replicas, group, way)
    return {seed: ended[seed] for seed in replicas.recipes if seed in ended}


def _is_finished(run: Path) -> bool:
    return (run / "recipe.json").is_file() and is_finished(run)


def _train_group(replicas: Replicas, seeds: Sequence[int], way: Way) -> dict[int, Ended]:
    """How replicas ended that are trained at the same time."""
    ended, begun = dict[int, Ended](), dict[int, Begun]()
    for seed, mesh in zip(seeds, way.meshes, strict=False):
        say = _speaker(replicas, seed)
        try:
            job, _ = concrete(replicas.recipes[seed], replicas.sources, replicas.cut._replace(mesh=mesh))
            one = begin(job, run_of(replicas.out, seed), say)
            done = already_done(one, replicas.habits)
        except (InputError, MachineError) as error:
            say(str(error))
            ended[seed] = _named(seed, error)
            continue
        if done:
            ended[seed] = _on_host(done)
        else:
            begun[seed] = one
    for one in begun.values():
        tell_start(one)
    pairs = [(one, _shared_on(replicas, one.job.mesh)) for one in begun.values()]
    if pairs:
        ends = train_together(
            pairs,
            replicas.habits,
            replicas.bad,
            replicas.console,
            way.take,
            replicas.stop_signal,
            together=way.together,
            stopped=lambda number, error: pairs[number][0].say(str(error)),
        )
        for seed, end in zip(begun, ends, strict=True):
            ended[seed] = _on_host(end) if isinstance(end, Result) else _named(seed, end)
    return ended


def _speaker(replicas: Replicas, seed: int) -> Say:
    """Says whose lines they are."""
    say = speaker(replicas.console)
    return lambda line: say(f"seed {seed}: {line}")


def _named(seed: int, error: InputError | MachineError) -> InputError | MachineError:
    return type(error)(f"seed {seed}: {error}").with_traceback(error.__traceback__)


def _on_host(result: Result) -> Result:
    """The result with its state as NumPy arrays: the devices are for those that are still trained."""
    return result._replace(state=jax.device_get(result.state)) if jax.process_count() == 1 else result


def _shared_on(replicas: Replicas, mesh: Mesh) -> Shared:
    """What replicas share on these devices; data is read once, and copied from the devices where it is."""
    shared = replicas.shared
    if mesh not in shared:
        recipe = next(iter(replicas.recipes.values()))
        job, parts = concrete(recipe, replicas.sources, replicas.cut._replace(mesh=mesh))
        if shared:
            first = next(iter(shared.values()))
            data = on_mesh(first.train, mesh), on_mesh(first.held, mesh)
        else:
            data = open_data(job, replicas.sources, replicas.feeding, replicas.bad)
        shared[mesh] = share(job, *data, compiler(job, parts, speaker(replicas.console)))
    return shared[mesh]
