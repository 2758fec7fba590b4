"""Sum what clients send so that the server sees the sum and no single summand.

An interface, (values (clients, ...), key) -> sum (...), and two implementations. `masked_sum` is the core of Bonawitz
et al. 2017, "Practical secure aggregation", section 3: each pair of clients shares a random mask, which one adds and
the other subtracts. Here all clients are in one process, which shows the arithmetic and protects nobody: exchanging
keys, and clients that drop out, are left to a real system.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

SecureSum = Callable[[Array, Array], Array]

# Fractional bits of a number modulo 2^32; sums from -2^15 to 2^15
_BITS = 16


def plain_sum(values: Array, key: Array) -> Array:
    """Return the sum over clients; the server sees every summand."""
    return values.sum(0)


def masked(values: Array, key: Array) -> Array:
    """Return what each client sends, (clients, ...) uint32: its value in fixed point, hidden by masks.

    Args:
        values: (clients, ...) float.
        key: from which each pair of clients derives its mask.
    """
    clients = values.shape[0]
    fixed = jnp.round(values * 2**_BITS).astype(jnp.int32).astype(jnp.uint32)
    low, high = jnp.triu_indices(clients, 1)

    def mask(pair: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(key, pair), values.shape[1:], jnp.uint32)

    shared = jax.vmap(mask)(low * clients + high)
    return fixed.at[low].add(shared).at[high].add(-shared)


def masked_sum(values: Array, key: Array) -> Array:
    """Return the sum over clients, rounded to 2^-16 for each, from what they send `masked`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> print(masked_sum(jnp.array([[1.5], [-3.0], [0.25]]), jax.random.key(0)))
        [-1.25]
    """
    total = masked(values, key).sum(0, dtype=jnp.uint32).astype(jnp.int32)
    return (total / 2**_BITS).astype(values.dtype)
