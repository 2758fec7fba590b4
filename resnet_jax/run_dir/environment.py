"""The environment in which a run was started: command, versions, devices, git commit."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from resnet_jax.runtime.safe_files import read_regular
from resnet_jax.runtime.strict_json import parse_json
from resnet_jax.version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def read_environments(run: Path) -> list[dict[str, Any]]:
    """Return the environment of each start of a run, oldest first; empty if the file is damaged."""
    try:
        starts = parse_json(read_regular(run / "environment.json"), nonfinite=True)
    except (OSError, ValueError):
        return []
    return starts if isinstance(starts, list) else []


def environment() -> dict[str, Any]:
    """Return command, versions, devices and git commit, on which a result may depend."""
    devices = jax.devices()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": package_versions(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
        **git_state(Path(__file__).parent),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the packages on which a result may depend."""
    return {"resnet_jax": __version__, **{name: metadata.version(name) for name in _PACKAGES}}


def git_state(folder: Path) -> dict[str, Any]:
    """Return the commit of a checkout, and whether tracked files differ from it; None outside a checkout."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_changed": None if changed is None else bool(changed)}
