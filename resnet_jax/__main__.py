"""The program: `resnet-jax`, or `python -m resnet_jax`."""

import sys

from resnet_jax.runtime.huge_pages import restart_asking


def run() -> None:
    """Run the command in `sys.argv` and end the process with its exit code."""
    restart_asking()
    from resnet_jax.runtime.terminal import open_standard_streams

    open_standard_streams()
    from resnet_jax.cli.main import main

    sys.exit(main())


if __name__ == "__main__":
    run()
