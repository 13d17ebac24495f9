"""Recall methods through the whole pipeline: made rows, and MovieLens 100k where it can be had."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import drivetrain as dt
from drivetrain.core.batch import Batch
from drivetrain.core.metric import Metric
from drivetrain.core.schema import MISSING_INT

FUSED = (
    dt.EASE(target="item", l2=300.0, even=0.5),
    dt.ALS(target="item", alpha=4.0, l2=40.0, factors=128),
)
RECBOLE = "recbole==1.2.1"
"""Its wheel holds MovieLens 100k, for research use by GroupLens' terms; nothing of it is kept."""


def system_of(rows: Path, train: Any, **changes: Any) -> dt.System:
    return dt.System(
        name="movies",
        events=dt.Parquet(str(rows)).split(dt.ColumnSplit("part")),
        features=(dt.Index("user"),),
        targets=(train.target,),
        train=train,
        probes=(dt.Ranking(k=20, **changes),),
    )


def ran(system: dt.System, site: Any) -> tuple[Any, dict[str, float]]:
    heard: list[Any] = []
    bundle = dt.run(system, site, emit=heard.append)
    assert bundle is not None
    return bundle, {m.name: m.value for m in heard if isinstance(m, Metric)}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Made rows: users of two tastes, items as text."""
    random = np.random.default_rng(0)
    user = random.integers(0, 80, 3000)
    item = (random.random(3000) ** 1.5 * 40).astype(int) * 2 + user % 2
    name = [f"film {n}" for n in item]
    part = dt.random_parts(user, seed=0)
    recent = pa.FixedSizeListArray.from_arrays(pa.array([2] * 6000), 2)
    columns = {"user": user, "item": name, "part": part.tolist(), "number": item, "recent": recent}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_a_bundle_lists_items_of_text_and_knows_the_two_tastes(rows: Path, site: Any) -> None:
    strategy = dt.ALS(target="item", k=20, factors=8, l2=1.0, alpha=5.0)
    bundle, figures = ran(system_of(rows, strategy, recall=0.1), site)
    assert bundle.manifest.inputs.names == ("user",)
    assert bundle.manifest.outputs.names == ("items", "scores")
    assert bundle.manifest.targets.fields[0].dtype == "string"
    assert bundle.manifest.metrics["test/recall@20"] == figures["test/recall@20"]
    assert figures["train/users"] == 80
    found = bundle.session.run(Batch({"user": np.array([4, 5, 999])}))
    for row, taste in zip(found["items"][:2].tolist(), (0, 1), strict=True):
        assert np.mean([int(name.split()[1]) % 2 == taste for name in row[:10]]) > 0.8
    _, popular = ran(system_of(rows, dt.Popularity(target="item", k=20)), site)
    assert figures["test/recall@20"] > popular["test/recall@20"] > 0
    assert figures["test/ndcg@20/low"] < figures["test/ndcg@20"] < figures["test/ndcg@20/high"]


def test_a_history_is_a_raw_column_of_the_bundle(rows: Path, site: Any) -> None:
    strategy = dt.ItemNeighbours(target="number", k=20, history="recent")
    bundle, _ = ran(system_of(rows, strategy), site)
    assert bundle.manifest.inputs.names == ("user", "recent")
    recent = np.array([[1, 3], [2, MISSING_INT]])
    found = bundle.session.run(Batch({"user": np.array([999, 999]), "recent": recent}))
    assert (found["items"][:, :8] % 2).tolist() == [[1] * 8, [0] * 8]
    assert not {1, 3} & set(found["items"][0].tolist()), "what one has just had"


def test_a_second_run_reads_what_the_first_one_kept(rows: Path, site: Any) -> None:
    system = system_of(rows, dt.EASE(target="item", k=20, l2=5.0))
    one, _ = ran(system, site)
    other, _ = ran(system, site)
    assert one.digest == other.digest


@pytest.mark.slow
def test_on_real_films_each_method_is_as_good_as_it_is_known_to_be(
    environment: Callable[..., Path], tmp_path: Path, site: Any
) -> None:
    python = environment("movies", "--no-deps", RECBOLE)
    log = next(
        python.parents[1].glob("lib/*/site-packages/recbole/dataset_example/ml-100k/*.inter")
    )
    user, item = np.loadtxt(log, np.int64, skiprows=1, usecols=(0, 1)).T
    part = dt.random_parts(user, seed=0)
    columns = {"user": user, "item": item, "part": part.tolist()}
    pq.write_table(pa.table(columns), tmp_path / "films.parquet")
    # What others report for such a split, less two standard deviations over seeds.
    least = {
        dt.Popularity(target="item"): (0.155, 0.135),
        dt.ItemNeighbours(target="item", neighbours=50): (0.28, 0.24),
        dt.EASE(target="item", l2=400.0): (0.375, 0.33),
        dt.ALS(target="item", alpha=4.0, l2=40.0): (0.375, 0.325),
        dt.Fused(target="item", methods=FUSED): (0.38, 0.33),
    }
    for method, (recall, ndcg) in least.items():
        told = replace(method, k=20, seen_in=("train", "validate"))
        _, figures = ran(system_of(tmp_path / "films.parquet", told), site)
        assert figures["train/items"] > 1600
        assert figures["test/users@20"] > 900
        assert recall < figures["test/recall@20"] < recall + 0.06, method
        assert ndcg < figures["test/ndcg@20"] < ndcg + 0.06, method
