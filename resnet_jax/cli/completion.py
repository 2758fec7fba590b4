"""resnet-jax completion."""

import contextlib
import inspect
import io
import re
from collections.abc import Callable, Mapping

from resnet_jax.cli.parse import HELP
from resnet_jax.errors import unknown
from resnet_jax.runtime.terminal import show

_SHELLS = ("bash", "zsh")
_SCRIPT = """\
_resnet_jax() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" flags=""
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{commands}" -- "$word")); return; fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -F _resnet_jax resnet-jax"""


def completion_script(shell: str, commands: Mapping[str, Callable[[list[str]], int]]) -> str:
    """Return a script that completes commands, flags and files; the flags are those that --help prints."""
    if shell not in _SHELLS:
        raise unknown("shell", shell, _SHELLS)
    cases = [f'    {name}) flags="{" ".join(flags_of(command))}" ;;' for name, command in commands.items()]
    script = _SCRIPT.format(commands=" ".join(commands), cases="\n".join(cases))
    return script if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{script}"


def flags_of(command: Callable[[list[str]], int]) -> list[str]:
    """Return the flags of a command."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        command(["--help"])
    return [*re.findall(r"^  (--[\w.-]+)", printed.getvalue(), re.M), "--help", "--help-all"]


def show_completion(words: list[str], commands: Mapping[str, Callable[[list[str]], int]]) -> int:
    """Print a script that completes words in a shell: eval "$(resnet-jax completion bash)"."""
    if {*words} & {*HELP}:
        show(f"usage: resnet-jax completion {{{','.join(_SHELLS)}}}\n\n{inspect.getdoc(show_completion)}")
        return 0
    show(completion_script(words[0] if words else "bash", commands))
    return 0
