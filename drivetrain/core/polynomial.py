"""The hash of a text within a graph: the sum of its bytes, weighted with powers of one number."""

BASE = 0x9E3779B97F4A7C15
"""What positions of a text are weighted with, as powers modulo 2^64: odd, so invertible."""
WORD = 1 << 64


def signed(value: int) -> int:
    """The int64 that has the same 64 bits as ``value`` modulo 2^64."""
    return (value + (1 << 63)) % WORD - (1 << 63)
