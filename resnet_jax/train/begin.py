"""A run before its next step: its directory, and the state that it goes on from."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from resnet_jax.recipe import Recipe
from resnet_jax.train.checkpoint import restore
from resnet_jax.train.devices import on_first_host, require_even_split
from resnet_jax.train.directory import keep_metrics, open_run, require_same_run
from resnet_jax.train.job import Job, Shard, Sources, initial, load_pretrained, prepare
from resnet_jax.train.progress import Say
from resnet_jax.train.state import TrainState
from resnet_jax.train.step import Sums
from resnet_jax.train.sweep import possible_parts, require_parts, unit_of


class Begun(NamedTuple):
    """A run before its next step."""

    job: Job
    out: Path
    state: TrainState
    step: int  # that of the state, which may still be being drawn
    sums: Sums
    lines: list[dict[str, Any]]
    notes: tuple[str, ...]  # on the weights that it starts from
    say: Say


class Cut(NamedTuple):
    """How a batch lies on the devices."""

    mesh: Mesh
    accumulate: int | Literal["auto"] = 1
    shard: Shard = "nothing"


def concrete(recipe: Recipe, sources: Sources, cut: Cut) -> tuple[Job, list[int]]:
    """The job of a recipe on these devices, and the numbers of parts into which its batch may be cut.

    Raises InputError where they do not fit each other.
    """
    job = prepare(recipe, sources.dataset, shard=cut.shard)._replace(mesh=cut.mesh)
    require_even_split(recipe.batch_size, cut.mesh)
    unit, size = unit_of(recipe, job.model.norm), cut.mesh.size
    if cut.accumulate == "auto":
        return job, possible_parts(recipe.batch_size, unit, size)
    require_parts(recipe.batch_size, unit, size, cut.accumulate)
    return job._replace(accumulate=cut.accumulate), [cut.accumulate]


def begin(job: Job, out: Path, say: Say) -> Begun:
    """Restores or makes the state; raises InputError before anything is written."""
    require_same_run(out, job.recipe, job.dataset)
    meet("looked at the directory")
    restored = restore(out / "checkpoints", job, quarantine=True, say=say)
    pretrained = None if restored else load_pretrained(job)
    if on_first_host():
        open_run(out, job.recipe, job.dataset, pretrained and pretrained.file)
    state, sums = restored or initial(job, pretrained and pretrained.variables)
    step = int(state.step) if restored else 0
    lines = keep_metrics(out, step)
    meet("opened the run")
    return Begun(job, out, state, step, sums, lines, pretrained.notes if pretrained else (), say)


def meet(where: str) -> None:
    """Waits until all hosts are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
