"""Search of more items than one goes through, beside plain hnswlib in the same graph.

    python bench/retrieval.py --quick --json

A million vectors of 64 numbers (``--quick``: 200,000), made and seeded: a hundred about each of
many directions, as factors of items have them; queries are drawn the same way. The graph is built
once, saved by ours, and read by ours and by hnswlib itself: what is compared is answering. Both
keep as many candidates as it takes to find .99 of the best 20, which an exact search says.

``hnsw_vs_hnswlib``: queries for each CPU second, ours over hnswlib's. ``hnsw_recall``: of ours.
``hnsw_vs_exact``: queries for each CPU second, over those of our own exact search in 8 bits.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.figure import Figure, figure, show, words
from drivetrain.core.hnsw import HNSW
from drivetrain.core.hnsw_file import GRAPH
from drivetrain.core.retrieval import Exact, recall_of

WIDTH, K, ABOUT, NOISE, RECALL = 64, 20, 100, 0.6, 0.99
MOST = 2_000
"""Candidates beyond which a graph that finds too little is no longer asked for more."""


def vectors(count: int, directions: int, seed: int) -> Any:
    """Made vectors about so many directions, the same ones whatever the seed."""
    centres = np.random.default_rng(0).standard_normal((directions, WIDTH), np.float32)
    random = np.random.default_rng((1, seed))
    noise = random.standard_normal((count, WIDTH), np.float32) * np.float32(NOISE)
    return centres[random.integers(0, directions, count)] + noise


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def figures(quick: bool) -> Iterator[Figure]:
    """Ours and hnswlib in turn."""
    import hnswlib

    count = 200_000 if quick else 1_000_000
    items, asked = vectors(count, count // ABOUT, 1), vectors(2_000, count // ABOUT, 2)
    exact = Exact(items)
    begin = time.process_time()
    index = HNSW(items, m=16, build=100)
    _say(f"built in {time.process_time() - begin:.0f} CPU s")
    index.ef = 20
    while (recall := recall_of(index, exact, asked, K)) < RECALL:
        index.ef = index.ef * 5 // 4
        if index.ef > MOST:
            raise RuntimeError(f"found recall {recall:.4f} with {MOST}, allowed: {RECALL} or more")
    _say(f"ef {index.ef}, recall {recall:.4f}")
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as folder:
        index.save(Path(folder) / "index")
        index = HNSW.load(Path(folder) / "index")  # both lie in memory as they were read
        plain: Any = hnswlib.Index("ip", WIDTH)
        plain.load_index(str(Path(folder) / "index" / GRAPH))
    plain.set_ef(index.ef)
    plain.knn_query(asked, K, 1)
    ratios, over_exact = list[float](), list[float]()
    for number in range(5):
        sides = [lambda: index.search(asked, K), lambda: plain.knn_query(asked, K, 1)]
        spent = {side: cpu(sides[side]) for side in ((0, 1), (1, 0))[number % 2]}
        ratios.append(spent[1] / spent[0])
        _say(f"ours {len(asked) / spent[0]:.0f}, hnswlib {len(asked) / spent[1]:.0f} queries")
    for _ in range(3):
        through_all = cpu(lambda: exact.search(asked, K))
        over_exact.append(through_all / cpu(lambda: index.search(asked, K)))
    many = f"{len(items):,} made vectors of {WIDTH} numbers"
    yield figure("hnsw_vs_hnswlib", ratios, f"hnswlib 0.8.0 in the same graph, {many}", 1.0)
    yield figure("hnsw_recall", [recall], f"exact search, {many}", RECALL)
    yield figure("hnsw_vs_exact", over_exact, f"our exact search in 8 bits, {many}", 1.0)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    options = words(__doc__)
    for each in figures(options.quick):
        show(each, options.json)
