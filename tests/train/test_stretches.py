"""What was had near in time: when pairs were had, rows cut into stretches, and EASE from both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logged import Logged

import drivetrain as dt
from drivetrain.core.batch import Batch
from drivetrain.core.schema import MISSING_INT, FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Run
from drivetrain.train.ease import closed_form
from drivetrain.train.recall.interactions import Interactions, Sparse, read
from drivetrain.train.recall.meeting import gram
from drivetrain.train.recall.stretches import GRIDS, cut, moments

USERS, ITEMS, SECOND = 20, 12, 1_000_000


class Log(Logged):
    """Made rows of users and items at times; the first two users are missing and rare."""

    features = FeatureSchema((FeatureField(name="who", kind="index", cardinality=USERS),))
    schema = Schema((Field("item", "int64"), Field("at", "timestamp")))

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.user = random.integers(0, USERS, 300)
        self.item = random.integers(0, ITEMS, 300) * 3
        self.at = random.integers(-500, 500, 300) * SECOND
        self.at[::9] = MISSING_INT
        self.columns = {"index": self.user[:, None], "item": self.item, "at": self.at}

    def batches(self, split: Any, *args: Any, size: int = 0, **kwargs: Any) -> Any:
        return self.pieces(size or 70)


def interactions(log: Any) -> Interactions:
    return read(log, column=0, item="item", weight=None, emit=lambda item: None)


def times_of(log: Any, found: Interactions, time: str = "at") -> Any:
    return moments(log, found, column=0, item="item", time=time, where="here")


def rows_of(found: Interactions) -> Any:
    return np.repeat(np.arange(found.had.rows), found.had.lengths)


def slow(had: Sparse, times: Any, near: int, close: float) -> np.ndarray:
    """The Gram matrix as the definition has it, pair by pair."""
    found = np.zeros((had.wide, had.wide))
    for row in range(had.rows):
        span = range(had.starts[row], had.starts[row + 1])
        for one in span:
            for other in span:
                weight = float(had.weights[one]) * float(had.weights[other])
                there = one == other or MISSING_INT not in (times[one], times[other])
                shifts = [n * near // GRIDS for n in range(GRIDS)]
                same = [(times[one] + s) // near == (times[other] + s) // near for s in shifts]
                share = np.mean(same) if there else 0.0
                place = had.columns[one], had.columns[other]
                found[place] += weight * (1 - close + close * share)
    return found


def test_a_pair_was_had_when_it_was_had_last() -> None:
    log = Log()
    found = interactions(log)
    due = dict.fromkeys(zip(log.user, log.item, strict=True), MISSING_INT)
    for user, item, at in zip(log.user, log.item, log.at, strict=True):
        due[user, item] = max(due[user, item], at)
    items = found.catalogue[found.had.columns]
    given = times_of(log, found).tolist()
    assert given == [due[pair] for pair in zip(rows_of(found), items, strict=True)]
    assert MISSING_INT in given
    assert len(set(given)) > 50


def test_pairs_that_are_held_out_have_no_time() -> None:
    log = Log()
    found = interactions(log)
    every = times_of(log, found)
    stay = np.arange(len(every)) % 3 > 0
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows_of(found)[stay], minlength=USERS))])
    had = Sparse(starts, found.had.columns[stay], found.had.weights[stay], found.had.wide)
    assert times_of(log, replace(found, had=had)).tolist() == every[stay].tolist()
    none = Sparse(np.zeros(USERS + 1, np.int64), had.columns[:0], had.weights[:0], had.wide)
    assert len(times_of(log, replace(found, had=none))) == 0


@given(
    rows=st.lists(st.lists(st.integers(0, 5), max_size=6, unique=True), min_size=1, max_size=5),
    near=st.integers(1, 40),
    close=st.sampled_from([0.25, 0.5, 1.0]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_was_had_near_counts_as_the_definition_has_it(
    rows: list[list[int]], near: int, close: float, data: st.DataObject
) -> None:
    columns = np.array([c for row in rows for c in sorted(row)], np.int32)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    moment = st.one_of(st.integers(-50, 50), st.just(MISSING_INT))
    size = len(columns)
    times = np.array(data.draw(st.lists(moment, min_size=size, max_size=size)), np.int64)
    had = Sparse(starts, columns, (1 + np.arange(size) % 3).astype(np.float32), 6)
    found = cut(had, times, near, close)
    np.testing.assert_allclose(gram(found), slow(had, times, near, close), rtol=1e-5, atol=1e-5)
    for first, last in zip(found.starts, found.starts[1:], strict=False):
        assert (np.diff(found.columns[first:last]) > 0).all()


@pytest.mark.parametrize("even", [0.0, 0.5])
def test_ease_learns_from_rows_and_stretches(even: float, tmp_path: Path) -> None:
    log = Log()
    found = interactions(log)
    lengths = np.maximum(found.had.lengths, 1)
    counts = lengths**-even
    counts *= found.had.lengths.sum() / (counts * found.had.lengths).sum()
    had = replace(found.had, weights=np.sqrt(counts[rows_of(found)]).astype(np.float32))
    weights = closed_form(slow(had, times_of(log, found), 60 * SECOND, 0.4), 3.0)
    strategy = dt.EASE(
        target="item", l2=3.0, even=even, near="1m", time="at", close=0.4, k=ITEMS, seen="keep"
    )
    graph = strategy.fit(None, log, Run(directory=tmp_path))
    users = np.arange(2, USERS)
    answer = graph.run(Batch({"index": users[:, None]}))
    order = np.argsort(found.catalogue)
    place = order[np.searchsorted(found.catalogue[order], answer["items"])]
    for user, at, scores in zip(users, place, answer["scores"], strict=True):
        own = found.had.columns[found.had.starts[user] : found.had.starts[user + 1]]
        np.testing.assert_allclose(scores, weights[own].sum(axis=0)[at], rtol=1e-3, atol=1e-4)


# -- through the whole pipeline --------------------------------------------------------------------


def system_of(folder: Path, train: Any, *targets: str) -> dt.System:
    """Films that are had one after another: each hour somebody has two of one kind."""
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(60), 20)
    hour = np.tile(np.repeat(np.arange(10), 2), 60)
    kind = np.repeat(random.integers(0, 8, 600), 2)
    item = kind * 5 + random.integers(0, 5, 1200)
    at = ((user * 100 + hour) * 3600 + random.integers(0, 600, 1200)) * SECOND
    part = dt.random_parts(user, seed=0)
    columns = {"user": user, "item": item, "number": item, "part": part.tolist()}
    table = pa.table({**columns, "at": pa.array(at, pa.timestamp("us"))})
    pq.write_table(table, folder / "rows.parquet")
    return dt.System(
        name="films",
        events=dt.Parquet(str(folder / "rows.parquet")).split(dt.ColumnSplit("part")),
        features=(dt.Index("user"),),
        targets=("item", *targets),
        train=train,
        probes=(dt.Ranking(k=10, item="item"),),
    )


def test_fused_with_others_it_finds_what_is_had_within_the_hour(tmp_path: Path, site: Any) -> None:
    near = dt.EASE(target="item", l2=1.0, near="30m", time="at", close=1.0)
    methods = (near, dt.Popularity(target="item"))
    fused = dt.Fused(target="item", k=10, methods=methods)
    assert fused.reads == ("item", "at")
    bundle = dt.run(system_of(tmp_path, fused, "at"), site)
    assert bundle is not None
    assert bundle.manifest.inputs.names == ("user",), "times are asked of nobody"
    far = replace(fused, methods=(dt.EASE(target="item", l2=1.0), methods[1]))
    other = dt.run(system_of(tmp_path, far), site)
    assert other is not None
    metrics = (bundle.manifest.metrics, other.manifest.metrics)
    assert metrics[0]["test/ndcg@10"] > metrics[1]["test/ndcg@10"]
    assert metrics[0]["train/weight/ease"] > 0


def test_times_must_be_times(tmp_path: Path, site: Any) -> None:
    strategy = dt.EASE(target="item", near="30m", time="at")
    with pytest.raises(ValueError, match="unknown target 'at'"):
        system_of(tmp_path, strategy)
    numbers = replace(strategy, time="number")
    with pytest.raises(ValueError, match=r"EASE\.time, column 'number': found 'int64'"):
        dt.run(system_of(tmp_path, numbers, "number"), site)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"near": "soon", "time": "at"}, r"EASE\.near: found 'soon', allowed: a length of time"),
        ({"near": "5m"}, r"EASE\.time: found None, allowed: the column of times"),
        ({"time": "at"}, r"EASE\.time: found 'at'"),
        ({"near": "5m", "time": "at", "close": 0.0}, r"EASE\.close: found 0\.0"),
        ({"close": 1.5}, r"EASE\.close: found 1\.5"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_declared(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dt.EASE(target="item", **options)
