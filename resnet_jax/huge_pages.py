"""Memory in large pages, so that a step on a CPU does not wait for Linux to clear thousands of small ones.

XLA asks the C library for the memory between the layers anew in each step and gives it back after it, and Linux clears
each page at its first use: 190,000 pages of 4 KiB in a step of ResNet-50 for 8 images of 224x224. With pages of 2 MiB
it takes .80 of the time, and so does one of ResNet-20 for 128 of 32x32 (jax 0.10.2, two cores of a shared server).
Many systems give large pages to those who ask. The C library asks where its tunable `glibc.malloc.hugetlb` is 1, and
reads that as a program starts, before Python could set it.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES, _ASKING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def restart_asking() -> None:
    """Starts this command anew where its C library then asks for large pages, and otherwise returns.

    To be called first in a program, which becomes the new one: the same process, arguments and terminal. A word about
    glibc.malloc.hugetlb in GLIBC_TUNABLES, such as glibc.malloc.hugetlb=0, leaves all as it is.
    """
    environment = asking(os.environ)
    if environment is None or not (sys.executable and given_on_request()):
        return
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError:  # then it runs as it did
        return


def asking(environment: Mapping[str, str]) -> dict[str, str] | None:
    """An environment in which the C library asks for large pages; None where it already was told what to do."""
    tunables = environment.get(_TUNABLES, "")
    if _ASKING in tunables:
        return None
    return {**environment, _TUNABLES: ":".join(filter(None, (tunables, f"{_ASKING}=1")))}


def given_on_request(setting: Path = _SETTING) -> bool:
    """Whether Linux gives large pages to those who ask, and this C library can (glibc 2.35 and later)."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        new_enough = tuple(map(int, version.split(".")[:2])) >= (2, 35)
        return name == "glibc" and new_enough and "[madvise]" in setting.read_text()
    except (AttributeError, ValueError, OSError):  # another C library or system
        return False
