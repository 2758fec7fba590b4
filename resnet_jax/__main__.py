"""`python -m resnet_jax` is `resnet-jax`."""

import sys

from resnet_jax.cli import main

sys.exit(main())
