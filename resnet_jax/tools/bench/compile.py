"""Compilation time: from scratch, and from the persistent cache."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from resnet_jax.runtime.compilation_cache import cache_settings

T = TypeVar("T")


def cold_and_warm(compiled: Callable[[], T]) -> tuple[T, float, float]:
    """Return the result of a call that compiles, and its seconds with a cold and with a warm cache."""
    with _empty_cache():
        start = time.perf_counter()
        result = compiled()
        middle = time.perf_counter()
        compiled()
        return result, middle - start, time.perf_counter() - middle


@contextmanager
def _empty_cache() -> Iterator[None]:
    """Use an empty compilation cache, and restore JAX's settings at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="resnet-jax-bench-") as folder,
        cache_settings(
            jax_compilation_cache_dir=folder,
            jax_enable_compilation_cache=True,
            jax_compilation_cache_max_size=-1,
            jax_persistent_cache_min_compile_time_secs=0.0,
        ),
    ):
        yield
