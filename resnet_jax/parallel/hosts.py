"""Join several hosts, which all run the same command, into one JAX program.

Addresses come from the cluster's environment (Cloud TPU, SLURM, Open MPI, Kubernetes) or from flags.
"""

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

from resnet_jax.errors import InputError, first_line
from resnet_jax.recipe.bounds import POSITIVE, require_flag_bounds
from resnet_jax.runtime.terminal import log_to_stderr


@dataclass(frozen=True, kw_only=True)
class HostOptions:
    """Multiple hosts, as in `jax.distributed.initialize`; leave all out if the cluster is detected."""

    coordinator_address: str | None = None
    """HOST:PORT of the first process, reachable by all others; None asks the cluster."""
    num_processes: Annotated[int | None, POSITIVE] = None
    """Number of processes; None asks the cluster, or is 1."""
    process_id: int | None = None
    """Number of this process, from 0; None asks the cluster."""
    heartbeat_timeout: Annotated[int, POSITIVE] = 20
    """Seconds without a heartbeat after which a process counts as lost and all others exit."""
    init_timeout: Annotated[int, POSITIVE] = 600
    """Seconds that a process waits for the others at the start. A process that does not join in time ends the run with
    a one-line error."""


# Variables that hold the number of processes
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")
# That a process which fails gives the others to fail as well
_SECONDS_TO_LEAVE = 3.0
LOST = "another process is lost; see its error, and repeat the same command on all hosts"
# Seconds after our time limit at which JAX, which aborts, would give up
_LATER = 60
# The first chip on a virtual machine of Cloud TPU
_TPUS = ("/dev/accel0", "/dev/vfio/0")


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Return whether this process may belong to several that should be joined."""
    counts = (environment.get(name, "") for name in _COUNTS)
    if any(count.isdecimal() and int(count) > 1 for count in counts):
        return True
    # Set in containers; it lists all hosts
    if "TPU_WORKER_HOSTNAMES" in environment:
        return "," in environment["TPU_WORKER_HOSTNAMES"]
    on_tpu = find_spec("libtpu") is not None and any(map(os.path.exists, _TPUS))
    # JAX asks the metadata server for the number of hosts
    return on_tpu and "TPU_SKIP_MDS_QUERY" not in environment


def join_hosts(hosts: HostOptions) -> None:
    """Join the other hosts, if there are any; call it once, before JAX looks at its devices.

    If the others do not join in time, the process ends with one line and exit code 2 (JAX would abort it).

    Raises:
        InputError: Flags and cluster contradict each other, or the hosts cannot be joined.
    """
    require_hosts(hosts)
    if hosts.num_processes == 1 or (hosts.num_processes is None and not in_cluster(os.environ)):
        return
    number = os.environ.get("JAX_NUM_PROCESSES") if hosts.num_processes is None else hosts.num_processes
    place = os.environ.get("JAX_PROCESS_ID") if hosts.process_id is None else hosts.process_id
    coordinator = hosts.coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")

    # Here, because the import is slow and --help does not need it
    import jax

    who = f"process {place} of {number}, coordinator {coordinator}"
    with _patience(hosts.init_timeout, who):
        try:
            jax.distributed.initialize(
                coordinator,
                None if number is None else int(number),
                None if place is None else int(place),
                heartbeat_timeout_seconds=hosts.heartbeat_timeout,
                initialization_timeout=hosts.init_timeout + _LATER,
            )
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"the other hosts cannot be joined ({first_line(error)}); give --coordinator-address HOST:PORT,"
                " --num-processes and --process-id if the cluster does not, or --num-processes 1 to run alone"
            ) from error


def is_one_of_several() -> bool:
    """Return whether this process has joined others."""
    jax = sys.modules.get("jax")
    return jax is not None and bool(jax.distributed.is_initialized())


def end_process(line: str, code: int) -> int:
    """Print the last line of a command that failed and return its exit code; end the process if it is one of several.

    At exit, Python would wait for the other processes, which may be waiting for this one. They have a few seconds to
    fail as well and leave with it, for JAX aborts those that miss one.
    """
    log_to_stderr(line)
    if is_one_of_several():
        limit = threading.Timer(_SECONDS_TO_LEAVE, os._exit, (code,))
        limit.daemon = True
        limit.start()
        with suppress(Exception):
            sys.modules["jax"].distributed.shutdown()
        os._exit(code)
    return code


@contextmanager
def _patience(seconds: float, who: str) -> Iterator[None]:
    """End the process with one line if the block takes longer than `seconds`."""

    def give_up() -> None:
        line = f"resnet-jax: the other processes did not join within {seconds} s (this is {who});"
        log_to_stderr(f"{line} start the same command on every host, or raise --init-timeout")
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def require_hosts(hosts: HostOptions) -> None:
    """Raise InputError, naming the flag, if a number is out of range or a flag is missing."""
    require_flag_bounds(hosts)
    if hosts.process_id is not None and (
        hosts.num_processes is None or not 0 <= hosts.process_id < hosts.num_processes
    ):
        raise InputError(f"--process-id is {hosts.process_id}; it is a number from 0, less than --num-processes")
    if hosts.coordinator_address is not None and (hosts.num_processes is None or hosts.process_id is None):
        raise InputError(
            "--coordinator-address needs --num-processes, the number of processes, and --process-id, this one's number"
        )
    if hosts.coordinator_address is not None and not hosts.coordinator_address.rpartition(":")[2].isdecimal():
        raise InputError(
            f"--coordinator-address is {hosts.coordinator_address!r}; give HOST:PORT, such as 10.0.0.1:9876"
        )
    if (
        hosts.num_processes is not None
        and hosts.num_processes > 1
        and hosts.coordinator_address is None
        and not in_cluster(os.environ)
    ):
        raise InputError(
            f"--num-processes is {hosts.num_processes}; name the first of them with --coordinator-address HOST:PORT"
        )
