"""Shares rows out among threads: the compiled part lets go of the interpreter."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.cores import cores


def share(work: Callable[[int, int], object], costs: Array) -> None:
    """Call ``work(first, last)`` for ranges that together are all rows, a core each.

    Args:
        work: what it does for a row must not depend on the range.
        costs: what each row costs, ``[rows]``.
    """
    count = min(cores(), max(1, len(costs)))
    if count == 1:
        work(0, len(costs))
        return
    ends = np.cumsum(costs, dtype=np.float64)
    inner = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count).tolist()
    edges = [0, *inner, len(costs)]
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, *pair) for pair in pairwise(edges)]:
            done.result()
