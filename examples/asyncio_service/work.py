"""The CPU-heavy function and its handler: how many prime numbers there are below a limit."""

from __future__ import annotations


def primes(request: bytes) -> bytes:
    """Count the primes below the number that is the request; raises ValueError."""
    return b"%d" % count(int(request))


def count(limit: int) -> int:
    """Return the number of primes below `limit`."""
    if limit < 3:
        return 0
    sieve = bytearray([1]) * limit
    sieve[0:2] = b"\0\0"
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, limit, number)))
    return sum(sieve)
