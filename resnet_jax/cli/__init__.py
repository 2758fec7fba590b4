"""The command line: each verb a few lines over the library.

Exit codes: 0 done, 1 the machine failed (a full disk), 2 wrong use or input, 130 and 143 stopped by SIGINT or SIGTERM.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata

from resnet_jax.cache import use_cache
from resnet_jax.cli.benching import bench
from resnet_jax.cli.checking import doctor
from resnet_jax.cli.converting import convert
from resnet_jax.cli.explaining import explain
from resnet_jax.cli.look import list_all, summary
from resnet_jax.cli.preflighting import preflight
from resnet_jax.cli.preparing import prepare
from resnet_jax.cli.reporting import report
from resnet_jax.cli.training import train
from resnet_jax.cli.use import evaluate, predict
from resnet_jax.errors import InputError, MachineError, first_line, unknown

VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    verb: (function, (function.__doc__ or "").strip())
    for verb, function in {
        "train": train,
        "evaluate": evaluate,
        "predict": predict,
        "explain": explain,
        "report": report,
        "convert": convert,
        "prepare": prepare,
        "list": list_all,
        "summary": summary,
        "doctor": doctor,
        "bench": bench,
        "preflight": preflight,
    }.items()
}

_COMPILING = ("train", "evaluate", "predict", "explain", "report", "bench")


def usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {doc}" for verb, (_, doc) in VERBS.items())
    return (
        f"usage: resnet-jax VERB ...\n\nResidual networks in JAX and Flax.\n\n{verbs}\n\n"
        "resnet-jax VERB --help shows what a verb takes."
    )


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    return guarded(lambda: _run(words))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(metadata.version("resnet-jax"))
        return 0
    if words[0] not in VERBS:
        raise unknown("verb", words[0], VERBS)
    if words[0] in _COMPILING and not {"-h", "--help"} & set(words):
        use_cache()
    return VERBS[words[0]][0](words[1:])


def guarded(command: Callable[[], int], name: str = "resnet-jax") -> int:
    """The exit code of a command; what is wrong with its words, its data or the machine is one line on stderr."""
    fail = partial(_fail, name)
    try:
        return command()
    except BrokenPipeError:  # `resnet-jax list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except InputError as error:
        return fail(str(error), 2)
    except (MachineError, OSError) as error:  # a full disk, a folder that may not be read
        return fail(str(error), 1)
    except Exception as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        return fail(f"out of memory ({first_line(error)}); lower --batch-size or use more devices", 1)


def _fail(name: str, message: str, code: int) -> int:
    """Says in one line what went wrong; returns the exit code."""
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return code
