"""The program: `resnet-jax`, or `python -m resnet_jax`."""

import sys

from resnet_jax.runtime.huge_pages import restart_asking


def run() -> None:
    """Runs the command in `sys.argv` and ends the process with its exit code."""
    restart_asking()
    from resnet_jax.cli.main import main

    sys.exit(main())


if __name__ == "__main__":
    run()
