"""Residual networks in JAX and Flax: the recipe determines the result, the hardware only the speed.

The public names are listed in `__init__.pyi` and imported on first use, so `import resnet_jax` costs nothing.
"""

import lazy_loader

from resnet_jax.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
