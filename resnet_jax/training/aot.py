"""Ahead-of-time compilation: once per image size, with as few microbatches as fit into memory."""

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from resnet_jax.training.executables import load_or_compile
from resnet_jax.training.make_step import make_train_step, train_size_at
from resnet_jax.training.progress import Log
from resnet_jax.training.setup import TrainSetup, program_identity

# (step, arguments) -> the compiled step, and the seconds that compiling it took now
CompiledStep = Callable[[int, tuple[Any, ...]], tuple[Callable[..., Any], float]]


def compile_once(setup: TrainSetup, accum_steps: list[int], log: Log) -> CompiledStep:
    """Return a function that compiles the step when it is first needed; safe to call from several threads.

    Args:
        setup: of the run.
        accum_steps: numbers of microbatches; the first that fits into the memory of a device is taken.
        log: is told how long it took.
    """
    known: dict[int | None, Callable[..., Any]] = {}
    lock = threading.Lock()

    def compiled(step: int, arguments: tuple[Any, ...]) -> tuple[Callable[..., Any], float]:
        size, start = train_size_at(setup.recipe, setup.dataset.train_size, step), time.perf_counter()
        with lock:
            if size in known:
                return known[size], 0.0
            known[size], count = compile_within(setup, accum_steps, size, arguments)
        seconds = time.perf_counter() - start
        split = f", {count} microbatches per step" if count > 1 else ""
        log(f"compiled in {seconds:.1f} s" + (f" for {size} x {size} pixels" if size else "") + split)
        return known[size], seconds

    return compiled


def compile_within(
    setup: TrainSetup, accum_steps: list[int], size: int | None, arguments: tuple[Any, ...]
) -> tuple[jax.stages.Compiled, int]:
    """Compile the step with the first of these numbers of microbatches that fits into memory; return it and which."""
    limit = device_memory_limit(setup.mesh)
    for count in accum_steps:
        accumulating = setup._replace(grad_accum_steps=count)
        # Of a program that is kept, the memory is not known
        identity = program_identity(accumulating, "train", size) if len(accum_steps) == 1 else None
        try:
            step = load_or_compile(partial(make_train_step, accumulating, size), arguments, setup.mesh, identity)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or count == accum_steps[-1]:
                raise
            continue
        if count == accum_steps[-1] or step_bytes(step) <= limit:
            return step, count
    raise AssertionError("one microbatch is always possible")


def device_memory_limit(mesh: Mesh) -> float:
    """Return the memory in bytes of each device; infinite if it does not say."""
    return (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit", math.inf)


def step_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the memory in bytes that a compiled function takes on each device, with arguments and results."""
    used = compiled.memory_analysis()
    if used is None:
        return 0
    own = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    return own + used.temp_size_in_bytes + used.generated_code_size_in_bytes
