"""Options for how data reaches the devices."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataLoading:
    """How data reaches the devices; none of it changes a batch."""

    device_cache_gib: float = 2.0
    """Splits up to this size in GiB are kept on every device; larger ones are read when they are needed."""
    num_threads: int | None = None
    """Threads that read images; None is one per core."""
