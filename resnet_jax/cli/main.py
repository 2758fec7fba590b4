"""The command line: `resnet-jax COMMAND ...`.

Exit codes: 0 done, 1 the machine failed (a full disk), 2 wrong use or input, 128 + n stopped by signal n, such as
130 and 143 by SIGINT and SIGTERM, and 138 by SIGUSR1 or --time-limit.
"""

import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial

from resnet_jax.cli.average import average
from resnet_jax.cli.bench import bench
from resnet_jax.cli.completion import show_completion
from resnet_jax.cli.convert import convert
from resnet_jax.cli.doctor import doctor
from resnet_jax.cli.embed import embed, neighbours, probe
from resnet_jax.cli.evaluate import evaluate
from resnet_jax.cli.explain import explain
from resnet_jax.cli.export import export, verify
from resnet_jax.cli.find_lr import find_lr
from resnet_jax.cli.list import list_all
from resnet_jax.cli.log import log
from resnet_jax.cli.parse import HELP
from resnet_jax.cli.predict import predict
from resnet_jax.cli.preflight import preflight
from resnet_jax.cli.prepare import prepare
from resnet_jax.cli.push import push
from resnet_jax.cli.report import report
from resnet_jax.cli.summary import summary
from resnet_jax.cli.sweep import sweep_recipes
from resnet_jax.cli.train import train
from resnet_jax.errors import InputError, MachineError, first_line, unknown
from resnet_jax.parallel.hosts import LOST, end_process, is_one_of_several
from resnet_jax.runtime.backend import backend_error
from resnet_jax.runtime.compilation_cache import enable_compilation_cache
from resnet_jax.runtime.terminal import flush, show, silence
from resnet_jax.version import __version__

COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    name: (function, (function.__doc__ or "").strip())
    for name, function in {
        "train": train,
        "evaluate": evaluate,
        "predict": predict,
        "explain": explain,
        "embed": embed,
        "neighbours": neighbours,
        "probe": probe,
        "find-lr": find_lr,
        "sweep": sweep_recipes,
        "report": report,
        "log": log,
        "convert": convert,
        "average": average,
        "export": export,
        "verify": verify,
        "push": push,
        "prepare": prepare,
        "list": list_all,
        "summary": summary,
        "doctor": doctor,
        "bench": bench,
        "preflight": preflight,
    }.items()
}

_COMPILING = (
    *("train", "find-lr", "sweep", "evaluate", "average", "predict", "explain", "embed", "neighbours", "report"),
    *("bench", "export"),
)


_EXAMPLES = """\
  resnet-jax train                                # scanned digits, in a minute
  resnet-jax train --data.name folder:pets --data.image-size 64 --out runs/pets
  resnet-jax predict runs/pets photo.jpg
  resnet-jax report runs/pets                     # one HTML page
  resnet-jax export runs/pets pets.onnx"""


def usage() -> str:
    """Return the help text: commands with what they do, on a line each."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {doc.partition(': ')[0]}" for name, (_, doc) in COMMANDS.items())
    return (
        f"usage: resnet-jax COMMAND ...\n\nResidual networks in JAX and Flax {__version__}.\n\n{commands}\n\n"
        "`resnet-jax COMMAND --help` shows the flags of a command, and --help-all explains them.\n"
        'Complete words in the shell: eval "$(resnet-jax completion bash)", or zsh.'
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    return guarded(lambda: _run(words))


def _run(words: list[str]) -> int:
    if not words:
        show(f"Residual networks in JAX and Flax. Some examples:\n\n{_EXAMPLES}\n\n`resnet-jax --help` lists commands.")
        return 2
    if words[0] in HELP:
        show(usage())
        return 0
    if words[0] == "--version":
        show(__version__)
        return 0
    if words[0] == "completion":
        return show_completion(words[1:], {name: function for name, (function, _) in COMMANDS.items()})
    if words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    if words[0] in _COMPILING and not {*HELP} & {*words}:
        enable_compilation_cache()
    return COMMANDS[words[0]][0](words[1:])


def guarded(command: Callable[[], int], name: str = "resnet-jax") -> int:
    """Return the exit code of a command; expected errors are printed as one line."""
    fail = partial(_fail, name)
    try:
        try:
            return command()
        finally:
            flush()
    # `resnet-jax list | head`
    except BrokenPipeError:
        silence(sys.stdout)
        return 0
    except KeyboardInterrupt as stop:
        return fail("interrupted", 128 + int(*stop.args or (signal.SIGINT,)))
    except InputError as error:
        return fail(str(error), 2)
    # A full disk, a folder without read permission
    except (MachineError, OSError) as error:
        return fail(str(error), 1)
    except Exception as error:
        if isinstance(error, (RuntimeError, AssertionError)) and (missing := backend_error()):
            return fail(missing, 2)
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            if not is_one_of_several():
                raise
            if type(error).__name__ == "JaxRuntimeError":
                return fail(f"{LOST} ({first_line(error)})", 1)
            # A bug; the others must not wait for this process
            traceback.print_exc()
            return fail(repr(error), 1)
        return fail(f"out of memory ({first_line(error)}); lower --batch-size or use more devices", 1)


def _fail(name: str, message: str, code: int) -> int:
    """Print an error as one line, and return the exit code."""
    try:
        flush()
    except OSError:
        silence(sys.stdout)
    return end_process(f"{name}: {' '.join(message.split())}", code)
