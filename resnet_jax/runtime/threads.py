"""Threads with the context variables and JAX's thread-local settings of their caller."""

import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

import jax

Value = TypeVar("Value")


def run_in_threads(calls: Sequence[Callable[[], Value]], abort: Callable[[], None]) -> list[Value]:
    """Run several calls, each on its own thread, and return their results in order.

    Args:
        calls: one or more.
        abort: called if a call or the caller is interrupted by an exception; makes the others end soon.

    Raises:
        BaseException: The first exception of a call, after all have ended.
    """
    settings = _thread_local_settings()

    def inside(call: Callable[[], Value]) -> Value:
        with ExitStack() as stack:
            for enter in settings:
                stack.enter_context(enter())
            return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        futures: list[Future[Value]] = [pool.submit(contextvars.copy_context().run, inside, call) for call in calls]
        for future in futures:
            future.add_done_callback(lambda done: abort() if done.exception() is not None else None)
        try:
            return [future.result() for future in futures]
        except BaseException:
            abort()
            raise


def _thread_local_settings() -> list[Callable[..., Any]]:
    """Return context managers that set JAX's thread-local settings to what they are on this thread."""
    config: Any = jax.config
    return [
        lambda value=config.jax_enable_x64: jax.enable_x64(value),
        lambda value=config.jax_numpy_rank_promotion: jax.numpy_rank_promotion(value),
        lambda value=config.jax_default_matmul_precision: jax.default_matmul_precision(value),
        lambda value=config.jax_debug_nans: jax.debug_nans(value),
    ]
