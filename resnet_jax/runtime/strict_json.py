"""Parse JSON that anybody may have written: what is refused is a ValueError, whatever the text."""

import json
import math
from collections import Counter
from typing import Any

# Far below Python's recursion limit, and far above what any of our files has
MAX_DEPTH = 64
# Of integers: more than any 64-bit number has
_MAX_DIGITS = 20


def parse_json(text: str | bytes, *, nonfinite: bool = False) -> Any:
    """Return the value of JSON text.

    Args:
        text: JSON; bytes are UTF-8.
        nonfinite: allow NaN and Infinity, which measured values may be.

    Raises:
        ValueError: The text is not JSON, is nested deeper than MAX_DEPTH, has a key twice or a number that neither 64
            bits nor a finite float hold. The message is one line and does not name the file.

    Example:
        >>> parse_json('{"lr": 0.1}')
        {'lr': 0.1}
        >>> parse_json('{"lr": 1e999}')
        Traceback (most recent call last):
        ValueError: 1e999 is too large
    """
    number = float if nonfinite else _finite
    try:
        value = json.loads(
            text.decode() if isinstance(text, bytes) else text,
            parse_int=_integer,
            parse_float=number,
            parse_constant=number,
            object_pairs_hook=_without_twins,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeError as error:
        raise ValueError("not text in UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for item in level for child in _children(item)]
    if level:
        raise ValueError("nested too deeply")
    return value


def _integer(digits: str) -> int:
    if len(digits.removeprefix("-")) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits is too large")
    return int(digits)


def _finite(number: str) -> float:
    value = float(number)
    if math.isnan(value) or number.endswith("Infinity"):
        raise ValueError(f"{number} is not JSON")
    if math.isinf(value):
        raise ValueError(f"{number[:20]} is too large")
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        (twin, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twin[:100]!r} occurs twice")
    for name in table:
        # Refuses lone surrogates
        name.encode()
    return table


def _children(value: Any) -> list[Any]:
    return [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
