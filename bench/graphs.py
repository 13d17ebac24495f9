"""What graphs of recommending take: CPU milliseconds a row on one thread, by rows asked at once.

    python bench/graphs.py --quick --json

Factors, users and what they had are made and seeded, not trained, which makes no difference to what
a run costs; factors are of 64 numbers. `als_ms_…`: the best 100 of so many items, what a user had
left out; `als_mb_…`: the memory that such a process has at most. `fused_ms_…`: two factorizations
as one, 200 candidates of 100,000 items, beside one of them alone (`one_ms_…`). `live_ms_…`: the
best 20 of 100,000 items that change while they are served; `live_few_vs_packed_…` is how much
faster few rows are where the items are read once, and not packed in every run; `find_vs_graph_…`
how much sooner the best are found before the run (AVX512 VNNI). `rerank_ms_…`: 20 of 200
candidates: the best, drawn, diverse, or both.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import drivetrain as dt
from bench.figure import Figure, figure, show, words
from drivetrain.core.batch import BYTES_SUFFIX
from drivetrain.core.graph import Graph, Session
from drivetrain.core.learner import Learner
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import Run
from drivetrain.train.recall import live
from drivetrain.train.recall.fusing import fused
from drivetrain.train.recall.graph import Scorer, Serving
from drivetrain.train.recall.interactions import FIRST_USER, Interactions, Sparse
from drivetrain.train.recall.least_squares import Factors
from drivetrain.train.recall.nodes import Nodes
from drivetrain.train.rerank.listing import fields, listed
from drivetrain.train.rerank.steps import Diverse, Explore, Rerank

USERS, FACTORS, HAD = 20_000, 64, 20
INDEX = Field("index", "int64", (1,))
ALONE = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
session.run(None, {"index": numpy.arange(2, int(sys.argv[2]) + 2)[:, None]})
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])
"""
"""Loads a graph and runs it once; prints the kilobytes that it had at most."""


class Drawn(dt.ALS):
    """A factorization that is not trained."""

    def factorized(self, had: Any, run: Any) -> Any:
        """Small random factors."""
        random = np.random.default_rng(self.seed)
        return tuple(Factors.drawn(n, self.factors, random) for n in (had.rows, had.wide))


def cpu_ms(session: Session, feeds: Mapping[str, Any], rows: int) -> list[float]:
    """CPU milliseconds of a row, five times, once it is warm."""
    names = list(session.outputs.names)

    def run(times: int) -> float:
        begin = time.process_time()
        for _ in range(times):
            session.raw(feeds, names)
        return (time.process_time() - begin) * 1e3 / times

    times = max(1, int(100 / max(run(3), 0.1)))
    return [run(times) / rows for _ in range(5)]


def beside(one: Callable[[], object], other: Callable[[], object]) -> list[float]:
    """The CPU time of one over that of the other, by turns, once both are warm."""

    def spent(work: Callable[[], object]) -> float:
        begin = time.process_time()
        for _ in range(20):
            work()
        return time.process_time() - begin

    for work in (one, other):
        spent(work)
    return [spent(one) / spent(other) for _ in range(5)]


def stated(name: str, values: list[float], what: str) -> Figure:
    """A figure that is compared with nothing."""
    return figure(name, values, f"none: stated; {what}", 0.0)


# -- recall ----------------------------------------------------------------------------------------


def world(items: int) -> Interactions:
    """What made users had: ``HAD`` items each."""
    random = np.random.default_rng(0)
    had = np.sort(random.integers(0, items // HAD, (USERS, HAD)) + np.arange(HAD) * (items // HAD))
    starts = np.maximum(np.arange(USERS + FIRST_USER + 1) - FIRST_USER, 0) * HAD
    columns = had.ravel().astype(np.int32)
    sparse = Sparse(starts, columns, np.ones(len(columns), np.float32), items)
    return Interactions(np.arange(items), np.full(items, HAD), sparse)


def factorization(found: Interactions, served: Serving, seed: int) -> Scorer:
    """The scorer of made factors."""
    method: Any = Drawn(target="item", factors=FACTORS, seed=seed)
    return method.scorer(None, found, Run(directory=Path()), served)


def asked(graph: Graph, rows: int, threads: int = 1) -> list[float]:
    """What so many users cost."""
    users = np.random.default_rng(1).integers(FIRST_USER, USERS, (rows, 1))
    return cpu_ms(graph.session(threads), {"index": users}, rows)


def of_factors(quick: bool) -> Iterator[Figure]:
    """One factorization, by items and rows."""
    for items in (2_000, 100_000, 200_000):
        found = world(items)
        served = Serving(index=INDEX, column=0, k=100, out=found.had)
        graph = served.graph(found, factorization(found, served, 0))
        for rows in (1, 256):
            what = f"{items:,} items, the best 100, {rows} rows"
            yield stated(f"als_ms_{items // 1000}k_{rows}", asked(graph, rows), what)


def in_memory(quick: bool) -> Iterator[Figure]:
    """The most memory of a process that loads the graph of 200,000 items and runs it, by rows."""
    found = world(200_000)
    served = Serving(index=INDEX, column=0, k=100, out=found.had)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(served.graph(found, factorization(found, served, 0)).model)
        file.flush()
        for rows in (1, 4096):
            command = [sys.executable, "-c", ALONE, file.name, str(rows)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            what = f"megabytes, 200,000 items, {rows} rows, ONNX Runtime and numpy alone"
            yield stated(f"als_mb_{rows}", [int(done.stdout) / 1e3], what)


def of_several(quick: bool) -> Iterator[Figure]:
    """Two factorizations as one, and one of them."""
    found = world(100_000)
    served = Serving(index=INDEX, column=0, k=200, out=found.had)
    two = [factorization(found, served, seed) for seed in (0, 1)]
    sides = {"fused": fused(("a", "b"), two, (1.0, 1.0), 100_000), "one": two[0]}
    for name, scorer in sides.items():
        graph = served.graph(found, scorer)
        for rows in (1, 64):
            what = f"100,000 items, 200 candidates, {rows} rows"
            yield stated(f"{name}_ms_{rows}", asked(graph, rows), what)


def of_live(quick: bool) -> Iterator[Figure]:
    """A factorization that learns while it is served, by rows; and few rows in the other way."""
    from bench.learning import drawn

    graphs: list[Graph] = []
    for few in (live.FEW, 0):
        with (
            tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as folder,
            mock.patch.object(live, "FEW", few),
        ):
            graphs.append(drawn(Path(folder)).graph)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        users = np.array([f"user {n}" for n in range(rows)], object)
        ours, packed = (cpu_ms(graph.session(1), {"user": users}, rows) for graph in graphs)
        what = f"100,000 items, the best 20, {rows} rows"
        yield stated(f"live_ms_{rows}", ours, what)
        if rows in (2, 16):
            ratios = [other / own for own, other in zip(ours, packed, strict=True)]
            yield figure(f"live_few_vs_packed_{rows}", ratios, f"packed in every run, {what}", 1.0)
    learner = Learner.of(graphs[0].model)
    assert learner is not None
    if learner.finder is None:
        return
    session = graphs[0].session(1)
    for rows in (1, 16):
        asked_by = np.array([f"user {n}" for n in range(rows)], object)
        ours = beside(
            lambda who=asked_by: session.raw({"user": who}, ["items"]),
            lambda who=asked_by: session.raw({"user": who, **learner.feeds(who)}, ["items"]),
        )
        what = f"the graph's own search, 100,000 items, the best 20, {rows} rows"
        yield figure(f"find_vs_graph_{rows}", ours, what, 1.0)


# -- re-ranking ------------------------------------------------------------------------------------


def of_lists(quick: bool) -> Iterator[Figure]:
    """The choice of 20 among 200 candidates."""
    random, wide, k = np.random.default_rng(0), 200, 20
    vectors = random.standard_normal((10_000, FACTORS), np.float32)
    schema = Schema((Field("request", "string"),))
    draw, diverse = Explore(0.1, "request"), Diverse(0.1)
    kinds: dict[str, tuple[Rerank, ...]] = {
        "best": (),
        "drawn": (draw,),
        "diverse": (diverse,),
        "both": (diverse, draw),
    }
    for name, steps in kinds.items():
        n = Nodes()
        chosen = listed(
            *(n, "places", "scores"),
            k=k,
            wide=wide,
            steps=steps,
            schema=schema,
            attributes={},
            vectors=vectors,
        )
        given = [Field("places", "int64", (wide,)), Field("scores", "float32", (wide,))]
        outputs = [
            (Field("items", "int64", (k,)), chosen.places),
            (Field("likely", "float32", (k,)), chosen.propensities),
        ]
        session = n.build([*given, *fields(steps, schema)], outputs).session(1)
        for rows in (1, 16):
            feeds: dict[str, Any] = {
                "places": random.integers(0, len(vectors), (rows, wide)),
                "scores": random.standard_normal((rows, wide), np.float32),
            }
            if draw in steps:
                feeds[f"request{BYTES_SUFFIX}"] = random.integers(1, 99, (rows, 20), np.uint8)
            what = f"20 of 200 candidates, {rows} rows"
            yield stated(f"rerank_ms_{name}_{rows}", cpu_ms(session, feeds, rows), what)


def figures(quick: bool) -> Iterator[Figure]:
    """Every figure."""
    for part in (of_factors, in_memory, of_several, of_live, of_lists):
        yield from part(quick)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
