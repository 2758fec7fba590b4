"""Options for how data reaches the devices."""

from dataclasses import dataclass
from typing import Annotated

from resnet_jax.recipe.bounds import NON_NEGATIVE


@dataclass(frozen=True, kw_only=True)
class DataLoading:
    """How data reaches the devices; none of it changes a batch."""

    device_cache_gib: Annotated[float, NON_NEGATIVE] = 2.0
    """Keep splits of up to this size in GiB on every device; larger ones are read as needed."""
    num_threads: Annotated[int | None, NON_NEGATIVE] = None
    """Threads that read images; None is one per core."""
