"""The divisors of a number: what a degree can be."""

from __future__ import annotations

import functools


def divisors(number: int) -> list[int]:
    """The divisors of a positive integer, ascending."""
    return list(_divisors(number))


@functools.lru_cache(maxsize=2**14)
def _divisors(number: int) -> tuple[int, ...]:
    found, left, prime = [1], number, 2
    while prime * prime <= left:
        powers = [1]
        while left % prime == 0:
            left //= prime
            powers.append(powers[-1] * prime)
        found = [d * power for d in found for power in powers]
        prime += 1 if prime == 2 else 2
    if left > 1:
        found += [d * left for d in found]
    return tuple(sorted(found))
