"""Communication between the processes of one run. On a single host nothing is sent."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from resnet_jax.errors import InputError
from resnet_jax.parallel.sharding import from_local_rows, replicated
from resnet_jax.runtime.strict_json import parse_json


def is_primary_host() -> bool:
    """Return whether this process writes the files of a run."""
    return jax.process_index() == 0


def broadcast_from_host0(value: int) -> int:
    """Return the first host's value of a number on all hosts, which must all call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def gather_from_hosts(text: str) -> list[str]:
    """Return the texts of all hosts, in their order; all of them must call it."""
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content.size))
    rows = multihost_utils.process_allgather(np.pad(content, (0, int(sizes.max()) - content.size)))
    return [row[:size].tobytes().decode() for row, size in zip(np.asarray(rows), sizes, strict=True)]


@contextmanager
def same_on_hosts() -> Iterator[dict[str, Any]]:
    """Run a block on all hosts, and leave it on all of them or none.

    The block may fill the yielded table with JSON values, which must be the same on all hosts.

    Raises:
        InputError: The block failed on another host, or a value differs. An error of this host is raised unchanged.
    """
    values: dict[str, Any] = {}
    failure: Exception | None = None
    try:
        yield values
    except Exception as error:
        failure = error
    texts = gather_from_hosts(json.dumps([failure and str(failure), values]))
    hosts = [parse_json(text, nonfinite=True) for text in texts]
    if failure:
        raise failure
    for number, (message, _) in enumerate(hosts):
        if message is not None:
            raise InputError(f"process {number}: {message}")
    require_same([values for _, values in hosts])


def require_same(tables: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError, naming the first value that differs between the tables of the processes."""
    for name in sorted(set().union(*tables)):
        found = [table.get(name) for table in tables]
        for number, value in enumerate(found):
            if value != found[0]:
                raise InputError(
                    f"the processes differ in {name}: {found[0]!s:.60} on process 0, {value!s:.60} on process {number};"
                    " use the same command, data and packages on all of them"
                )


def host_signals(mesh: Mesh, signal: int) -> Array | None:
    """Return the largest signal number () int32 that any host received; None on a single host.

    The value is computed in the background. All hosts must call it after the same step, and read it at the same step.
    """
    if jax.process_count() == 1:
        return None
    signals = from_local_rows(np.full(len(mesh.local_devices), signal, np.int32), mesh)
    return jax.jit(lambda x: x.max(), out_shardings=replicated(mesh))(signals)
