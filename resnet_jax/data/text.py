"""Text as a sequence of bytes, which needs no vocabulary."""

import numpy as np


def encode_text(text: str, length: int) -> np.ndarray:
    """Return the first `length` bytes of a text, lower-case UTF-8 followed by zeros: int32 (length, 1).

    Example:
        >>> encode_text("Ah é", 6)[:, 0].tolist()
        [97, 104, 32, 195, 169, 0]
    """
    content = text.lower().encode(errors="replace")[:length].ljust(length, b"\0")
    return np.frombuffer(content, np.uint8).astype(np.int32)[:, None]


def decode_text(tokens: np.ndarray) -> str:
    """Return the text of bytes (length, 1), without the zeros after it.

    Example:
        >>> decode_text(encode_text("Ah", 6))
        'ah'
    """
    return bytes(tokens[:, 0].astype(np.uint8)).rstrip(b"\0").decode(errors="replace")
