"""Noise that is a hash of a request and an item: drawn once, and the same whenever asked again."""

from collections.abc import Sequence

import numpy as np

from drivetrain.core.batch import BYTES_SUFFIX
from drivetrain.core.polynomial import BASE, WORD, signed
from drivetrain.core.schema import MISSING_INT, Schema
from drivetrain.train.recall.nodes import MOST_TEXT, Nodes

UINT64, DOUBLE = 13, 11


def seeds(n: Nodes, columns: Sequence[str], schema: Schema) -> tuple[str, str]:
    """The hash of some raw columns, uint64 ``[rows, 1]``, and whether none is missing, bool.

    Texts and integers are hashed as the feature ``Hash`` does, then mixed one after the other.
    """
    base = n.held(np.array(BASE, np.uint64))
    seed = n.held(np.zeros((1, 1), np.uint64))
    known = n.held(np.ones((1, 1), bool))
    for name in columns:
        text = schema.field(name).numpy == "object"
        value = _summed(n, name + BYTES_SUFFIX) if text else n.op("Unsqueeze", name, n.ints(1))
        missing = n.held(np.array(0 if text else MISSING_INT, np.int64))
        known = n.op("And", known, n.op("Not", n.op("Equal", value, missing)))
        each = mixed(n, n.op("Cast", value, to=UINT64))
        seed = mixed(n, n.op("Add", n.op("Mul", seed, base), each))
    return seed, known


def _summed(n: Nodes, text: str) -> str:
    """The weighted sum of a text's bytes, int64 ``[rows, 1]``; 0 of no text."""
    head = n.op("Slice", text, n.ints(0), n.ints(MOST_TEXT), n.ints(1))
    powers = [signed(pow(BASE, i + 1, WORD)) for i in range(MOST_TEXT)]
    table = n.held(np.array(powers, np.int64)[:, None])
    table = n.op("Slice", table, n.ints(0), n.op("Shape", head, start=1, end=2))
    return n.op("MatMul", n.op("Cast", head, to=7), table)


def uniform(n: Nodes, seed: str, apart: str) -> str:
    """Independent numbers strictly between 0 and 1, float64, by counting on from a seed.

    Args:
        n: takes the nodes.
        seed: uint64.
        apart: int64 that broadcasts with it: equal numbers give equal noise.
    """
    far = n.op("Mul", n.op("Cast", apart, to=UINT64), n.held(np.array(BASE, np.uint64)))
    # 52 bits and a half: none is 0 or 1, so that the logarithms of noise are finite.
    bits = mixed(n, n.op("Add", far, seed))
    bits = n.op("BitShift", bits, n.held(np.array(12, np.uint64)), direction="RIGHT")
    half, unit = (n.held(np.array(value, np.float64)) for value in (0.5, 2.0**-52))
    return n.op("Mul", n.op("Add", n.op("Cast", bits, to=DOUBLE), half), unit)


def gumbel(n: Nodes, uniform: str) -> str:
    """Standard Gumbel noise out of uniform noise."""
    return n.op("Neg", n.op("Log", n.op("Neg", n.op("Log", uniform))))


def mixed(n: Nodes, bits: str) -> str:
    """MurmurHash3's 64-bit finaliser (``fmix64``, Appleby 2016) of uint64 numbers."""
    shift = n.held(np.array(33, np.uint64))
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = n.op("BitwiseXor", bits, n.op("BitShift", bits, shift, direction="RIGHT"))
        bits = n.op("Mul", bits, n.held(np.array(factor, np.uint64)))
    return n.op("BitwiseXor", bits, n.op("BitShift", bits, shift, direction="RIGHT"))
