"""Progress beside the state: small NumPy arrays and JSON values in the manifest, exact to the last bit."""

from typing import Any

import numpy as np


def encode_progress(progress: Any) -> Any:
    """Return JSON values: arrays become nested lists; int64 and float64 survive the round trip.

    Example:
        >>> decode_progress(encode_progress({"totals": {"loss": np.float64(0.1), "count": np.int64(3)}}))
        {'totals': {'loss': array(0.1), 'count': array(3)}}
    """
    if isinstance(progress, dict):
        return {name: encode_progress(value) for name, value in progress.items()}
    return progress.tolist() if isinstance(progress, np.ndarray | np.generic) else progress


def decode_progress(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the progress that was encoded; numbers in "totals" become arrays again."""
    return {**saved, "totals": _arrays(saved["totals"])} if "totals" in saved else dict(saved)


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _arrays(entry) for name, entry in value.items()}
    return None if value is None else np.asarray(value)
