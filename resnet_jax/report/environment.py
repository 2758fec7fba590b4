"""Environments of runs: versions, devices and commits, which each run records when it starts."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax.report.runs import Run


class Environment(NamedTuple):
    """The environment of one or more runs."""

    runs: tuple[str, ...]
    facts: dict[str, str]


def hardware(run: Run) -> str:
    """Return the devices of the last start, such as "8 x TPU v4"."""
    kinds = run.starts[-1].get("devices") if run.starts else None
    if not isinstance(kinds, list) or not kinds:
        return "unknown"
    return ", ".join(f"{count} x {kind}" for kind, count in Counter(map(str, kinds)).items())


def environments(runs: Sequence[Run]) -> list[Environment]:
    """Return the distinct environments of the last starts, each with the names of its runs."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in runs:
        if run.starts:
            found.setdefault(tuple(_facts(run).items()), []).append(run.name)
    return [Environment(tuple(names), dict(facts)) for facts, names in found.items()]


def _facts(run: Run) -> dict[str, str]:
    start = run.starts[-1]
    packages = start.get("packages")
    versions = {str(k): str(v) for k, v in packages.items()} if isinstance(packages, dict) else {}
    return {
        "devices": hardware(run),
        "processes": _written(start.get("processes")),
        "system": _written(start.get("system")),
        "python": _written(start.get("python")),
        **versions,
        "commit": _written(start.get("git_commit")) + (", with changes" if start.get("git_changed") else ""),
    }


def _written(value: Any) -> str:
    return "unknown" if value is None else str(value)


def _pasted(program: str) -> str:
    """Return a program as a user types it: without the path of an installed one."""
    path = Path(program)
    if path.parts[-2:] == ("resnet_jax", "__main__.py"):
        return "python -m resnet_jax"
    if path.name == "resnet-jax":
        return path.name
    return f"python {shlex.quote(program)}" if path.suffix == ".py" else shlex.quote(program)


def commands(runs: Sequence[Run]) -> list[str]:
    """Return the commands that started and resumed each run."""
    lines = []
    for run in runs:
        for start in run.starts:
            words = start.get("command")
            if isinstance(words, list) and words:
                program, *rest = map(str, words)
                lines.append(f"{run.name}: {_pasted(program)} {shlex.join(rest)}".rstrip())
    return lines
