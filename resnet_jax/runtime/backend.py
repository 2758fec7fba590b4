"""Backends of JAX that were asked for and are missing."""

import os
from importlib import metadata

from resnet_jax.errors import first_line

# Plugins of JAX by the extra of jax that installs them
_PLUGINS = {"cuda12": "jax-cuda12-plugin", "cuda13": "jax-cuda13-plugin", "tpu": "libtpu"}
_EXTRAS = {"cuda": ("cuda12", "cuda13"), "gpu": ("cuda12", "cuda13"), "tpu": ("tpu",)}


def backend_error() -> str | None:
    """Return why JAX has no backend, in one line; None if it has one."""
    import jax

    try:
        jax.devices()
        return None
    except (RuntimeError, AssertionError) as error:
        # JAX fails an assertion if there is no GPU
        why = first_line(error) if str(error) else "no such device is visible"
    asked = os.environ.get("JAX_PLATFORMS", "")
    installed = [extra for extra, plugin in _PLUGINS.items() if _is_installed(plugin)]
    wanted = dict.fromkeys(extra for name in asked.split(",") for extra in _EXTRAS.get(name, ()))
    missing = [f"pip install 'jax[{extra}]'" for extra in wanted] if not {*wanted} & {*installed} else []
    advice = " or ".join([*missing, "unset JAX_PLATFORMS" if asked else "set JAX_PLATFORMS=cpu"])
    return f"no backend {asked or 'of JAX'}: {why}; installed: {', '.join(['cpu', *installed])}; {advice}"


def _is_installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
