"""What the tests of lakes share: rows, and the numbers that a table holds."""

import pyarrow as pa

from drivetrain.events.delta import Delta

MICROSECOND = pa.timestamp("us")


def some(start=0, count=3, **more):
    return pa.table({"n": list(range(start, start + count)), **more})


def numbers(path):
    leaf = Delta(path)
    chunks = [chunk["n"].to_pylist() for chunk in leaf.chunks(leaf.schema.select(("n",)), 1000)]
    return sorted(n for chunk in chunks for n in chunk)
