"""The short help has every flag, on a line each; the long one is tyro's. Completion knows the flags."""

import re
import subprocess

import pytest

from resnet_jax.cli.completion import completion_script
from resnet_jax.cli.main import COMMANDS, main
from resnet_jax.errors import InputError

FUNCTIONS = {name: function for name, (function, _) in COMMANDS.items()}


def printed(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main([*words])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_short_help_has_every_flag_on_one_line(command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    short, long = printed(capsys, command, "--help"), printed(capsys, command, "--help-all")
    assert max(map(len, short.splitlines())) <= columns
    assert short.startswith(f"usage: resnet-jax {command}")
    assert f"\n{COMMANDS[command][1].partition(': ')[0].rstrip('.')}.\n" in short
    assert re.search(rf"All details: resnet-jax {command}( data)? --help-all\s*$", short)
    rows = re.findall(r"^  (--[\w.-]+|[A-Z]+\b)", short.split("\n\n", 1)[1], re.M)
    assert len(rows) == len(set(rows))
    assert len(rows) == long.count("(default:") + long.count("(required)")
    assert all(re.search(rf"{re.escape(flag)}(?![\w.-])", long) for flag in rows if flag.startswith("--"))


def test_the_words_of_a_switch(capsys):
    lines = printed(capsys, "train", "--help").splitlines()
    assert any(re.match(r"  --optimizer\.no-nesterov +Turn off: Nesterov momentum", line) for line in lines)
    assert any(line.startswith("  --augment.hflip ") for line in lines)
    assert any(line.startswith("  --optimizer.lr 0.1 ") for line in lines)


def test_no_words_are_five_examples(capsys):
    assert main([]) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  resnet-jax ")]
    assert len(lines) == 5
    assert all(line.split()[1] in COMMANDS and len(line) <= 80 for line in lines)


def test_completion_says_how_it_is_used(capsys):
    assert main(["completion", "--help"]) == 0
    assert "usage: resnet-jax completion {bash,zsh}" in capsys.readouterr().out


def test_completion():
    ask = "COMP_WORDS=(resnet-jax train --optimizer.weight-decay-); COMP_CWORD=2; _resnet_jax; echo ${COMPREPLY[@]}"
    script = f"{completion_script('bash', FUNCTIONS)}\n{ask}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "--optimizer.weight-decay-mask"
    with pytest.raises(InputError, match="fish"):
        completion_script("fish", FUNCTIONS)
