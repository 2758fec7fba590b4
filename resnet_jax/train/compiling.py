"""Compiling the training step: once for each size of the images, in as many parts as the memory asks for."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from resnet_jax.train.job import Job, make_advance, train_size_at
from resnet_jax.train.progress import Say

# (step, its arguments) -> the compiled step and the seconds that compiling it took now
Compiled = Callable[[int, tuple[Any, ...]], tuple[Callable[..., Any], float]]


def compiler(job: Job, parts: list[int], say: Say) -> Compiled:
    """A function (step, its arguments) -> the compiled step and the seconds that compiling it took now.

    Of `parts`, into which a batch may be cut, the first whose step fits into the memory of a device is taken.
    """
    known: dict[int | None, Callable[..., Any]] = {}

    def compiled(step: int, given: tuple[Any, ...]) -> tuple[Callable[..., Any], float]:
        size, start = train_size_at(job.recipe, job.dataset.train_size, step), time.perf_counter()
        if size in known:
            return known[size], 0.0
        known[size], count = compile_within(job, parts, size, given)
        seconds = time.perf_counter() - start
        cut = f", batches in {count} parts" if count > 1 else ""
        say(f"compiled in {seconds:.1f} s" + (f" for {size} x {size} pixels" if size else "") + cut)
        return known[size], seconds

    return compiled


def compile_within(
    job: Job, parts: list[int], size: int | None, given: tuple[Any, ...]
) -> tuple[jax.stages.Compiled, int]:
    """The step in the fewest of these numbers of parts that the memory of a device allows, and how many they are."""
    limit = limit_of(job.mesh)
    for count in parts:
        try:
            step = make_advance(job._replace(accumulate=count), size).lower(*given).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or count == parts[-1]:
                raise
            continue
        if count == parts[-1] or bytes_of(step) <= limit:
            return step, count
    raise AssertionError("one part is always possible")


def limit_of(mesh: Mesh) -> float:
    """Memory in bytes of each device; infinite where it does not say."""
    return (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit", math.inf)


def bytes_of(compiled: jax.stages.Compiled) -> int:
    """Memory in bytes that a compiled function takes on each device, with its arguments and results."""
    used = compiled.memory_analysis()
    if used is None:
        return 0
    own = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    return own + used.temp_size_in_bytes + used.generated_code_size_in_bytes
