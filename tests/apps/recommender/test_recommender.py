"""A whole recommender: what is held out, what a ranker learns, what is answered and to whom."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import drivetrain as dt
from drivetrain.apps.recommender import Diverse, Explore, Ranker, Recommender
from drivetrain.apps.recommender.answer import likeness
from drivetrain.apps.recommender.items import described, held
from drivetrain.core.batch import Batch
from drivetrain.core.metric import Metric
from drivetrain.core.schema import MISSING_INT
from drivetrain.models import MLP
from drivetrain.train.recall.interactions import Interactions, Sparse
from drivetrain.train.recall.last_rows import Log

USERS, ITEMS = 400, 40
QUICK = dt.Single(loss=dt.Listwise("had"), epochs=6, batch_size=32, lr=0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made rows, in which the old want old films and the young new ones, whatever others had."""
    random = np.random.default_rng(0)
    home = tmp_path_factory.mktemp("films")
    age = random.integers(0, 2, USERS)
    user = np.repeat(np.arange(USERS), 6)  # so few that taste is hard to tell from them
    liked = (random.random(len(user)) < 0.85) == age[user].astype(bool)
    item = random.integers(0, ITEMS // 2, len(user)) * 2 + liked
    rows = {
        "user": [f"u{n}" for n in user],
        "item": [f"film {n}" for n in item],
        "age": age[user] * 30.0 + 20,
        "part": dt.random_parts(user, validate=0.2, test=0.2).tolist(),
        "request": np.arange(len(user)),
        "k": pa.nulls(len(user), pa.int64()),
        "at": pa.array(np.arange(len(user)) * 1_000_000, pa.timestamp("us")),
    }
    pq.write_table(pa.table(rows), home / "rows.parquet")
    known = [n for n in range(ITEMS) if n != 7]  # the table lacks one
    films = {"item": [f"film {n}" for n in known], "old": [float(n % 2) for n in known]}
    pq.write_table(pa.table(films), home / "films.parquet")
    return home


def declared(folder: Path, **changes: Any) -> dt.System:
    train = Recommender(
        target="item",
        recall=dt.EASE(target="item", l2=20.0, user="user_index"),
        k=5,
        candidates=25,
        items=dt.Parquet(str(folder / "films.parquet")),
        item_features=(dt.Raw("old"),),
        limit="k",
    )
    return dt.System(
        name="films",
        events=dt.Parquet(str(folder / "rows.parquet"), time="at")
        .with_windows(recent=dt.Window("request", by="user", stat="recent", rows=3))
        .split(dt.ColumnSplit("part")),
        features=(dt.Index("user"), dt.Scale("age")),
        targets=("item",),
        train=replace(train, **changes),
        probes=(dt.Ranking(k=5),),
    )


def ran(system: dt.System, site: dt.Site) -> tuple[Any, dict[str, float]]:
    heard: list[Any] = []
    bundle = dt.run(system, site, emit=heard.append)
    assert bundle is not None
    return bundle, {m.name: m.value for m in heard if isinstance(m, Metric)}


def rows_of(*users: str, **columns: Any) -> Batch:
    every: dict[str, Any] = {"user": np.array(users, object), "age": np.full(len(users), 20.0)}
    every["k"] = np.full(len(users), MISSING_INT)
    return Batch(every | columns)


def test_a_ranker_that_learns_what_recall_cannot_know_puts_it_first(
    folder: Path, site: dt.Site
) -> None:
    plain, before = ran(declared(folder), site)
    ranker = Ranker(model=MLP(hidden=(16,), dim=2), train=QUICK, held_out=0.4)
    bundle, after = ran(declared(folder, ranking=ranker), site)
    assert after["train/ranking/ndcg"] > after["train/recall/ndcg"]
    assert after["test/ndcg@5"] > before["test/ndcg@5"]
    asked = rows_of("nobody", "nobody", age=np.array([20.0, 50.0]))
    assert bundle.session.run(asked)["reasons"].tolist() == [["popular"] * 5] * 2
    assert bundle.session.run(rows_of())["items"].shape == (0, 5)
    for row, old in zip(bundle.session.run(asked)["items"].tolist(), (0, 1), strict=True):
        assert [int(name.split()[1]) % 2 for name in row] == [old] * 5, "by age alone"
    same = plain.session.run(asked)["items"]
    assert same[0].tolist() == same[1].tolist(), "recall by itself knows no age"


def test_what_is_answered_has_scores_reasons_and_propensities(folder: Path, site: dt.Site) -> None:
    bundle, _ = ran(declared(folder), site)
    assert bundle.manifest.outputs.names == ("items", "scores", "reasons", "propensities")
    assert set(bundle.manifest.inputs.names) == {"user", "age", "k"}
    wanted = np.array([MISSING_INT, 2, 0, 99])
    found = bundle.session.run(rows_of("u1", "u1", "u1", "nobody", k=wanted))
    assert [sum(name != "" for name in row) for row in found["items"].tolist()] == [5, 2, 0, 5]
    for name in ("scores", "propensities"):
        assert (np.isnan(found[name]) == (found["items"] == "")).all()
    assert found["reasons"][0].tolist() == ["ease"] * 5
    assert found["reasons"][1].tolist() == ["ease"] * 2 + [""] * 3
    assert found["reasons"][3].tolist() == ["popular"] * 5
    assert (np.diff(found["scores"][0]) <= 0).all()
    assert (found["propensities"][0] == 1).all()
    alone = bundle.session.run(rows_of("u1"))
    assert alone["items"][0].tolist() == found["items"][0].tolist()


def test_the_answers_of_recall_are_those_of_recall_alone(folder: Path, site: dt.Site) -> None:
    system = declared(folder)
    alone = replace(system, train=replace(system.train.recall, k=5))  # type: ignore[attr-defined]
    bundle, due = ran(system, site)[0], ran(alone, site)[0]
    asked = rows_of(*(f"u{n}" for n in range(20)), "nobody")
    found, answer = bundle.session.run(asked), due.session.run(asked.select(("user", "age")))
    assert found["items"].tolist() == answer["items"].tolist()
    np.testing.assert_allclose(found["scores"], answer["scores"], rtol=1e-6)


def test_where_recall_finds_nothing_that_is_held_out_there_is_no_ranker(
    tmp_path: Path, site: dt.Site
) -> None:
    user = np.repeat(np.arange(30), 3)
    item = [f"own {n}" if n % 3 == 2 else f"common {n % 3}" for n in range(len(user))]
    part = ["train"] * len(user) + ["validate", "test"]
    rows = {"user": [*user, 0, 1], "item": [*item, "common 0", "common 1"], "part": part}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    train = Recommender(
        target="item",
        k=1,
        candidates=2,
        recall=dt.Popularity(target="item"),
        ranking=Ranker(model=MLP(hidden=(4,))),
    )
    heard: list[Any] = []
    system = dt.System(
        name="films",
        events=dt.Parquet(str(tmp_path / "rows.parquet")).split(dt.ColumnSplit("part")),
        features=(dt.Index("user"),),
        targets=("item",),
        train=train,
    )
    bundle = dt.run(system, site, emit=heard.append)
    assert bundle is not None
    assert any("ranking is left out: recall finds nothing" in str(said) for said in heard)
    assert bundle.session.run(Batch({"user": np.array([7])}))["items"].shape == (1, 1)


@dataclass(frozen=True)
class Backwards:
    """A strategy that puts the worst first."""

    def fit(self, model: Any, source: Any, run: Any) -> Any:
        assert source.rows("train") > 100
        model.scale.data.fill_(-1.0)
        return model.eval()


def test_a_ranker_that_is_no_better_is_left_out(folder: Path, site: dt.Site) -> None:
    ranker = Ranker(model=MLP(hidden=(4,), dim=2), train=Backwards(), features=())
    bundle, figures = ran(declared(folder, ranking=ranker), site)
    assert figures["train/ranking/ndcg"] < figures["train/recall/ndcg"]
    plain, _ = ran(declared(folder), site)
    asked = rows_of("u1", "u2", "nobody")
    due = plain.session.run(asked)["items"].tolist()
    assert bundle.session.run(asked)["items"].tolist() == due


def test_what_is_served_may_know_the_rows_of_validation_too(folder: Path, site: dt.Site) -> None:
    """Whether the ranker pays is seen before, on rows that nothing learnt from."""
    system = declared(folder)
    recall = replace(system.train.recall, learn_from=("train", "validate"))
    ranker = Ranker(model=MLP(hidden=(16,), dim=2), train=QUICK, held_out=0.4)
    _, before = ran(system, site)
    bundle, after = ran(replace(system, train=replace(system.train, recall=recall)), site)
    ranks, ranked = ran(declared(folder, recall=recall, ranking=ranker), site)
    assert after["train/interactions"] > before["train/interactions"]
    assert ranked["trial/train/interactions"] == before["train/interactions"]
    assert ranked["trial/train/ranking/ndcg"] > ranked["trial/train/recall/ndcg"]
    assert ranked["train/interactions"] == after["train/interactions"]
    names = ["nobody", "nobody"]
    old, young = ranks.session.run(rows_of(*names, age=np.array([20.0, 50.0])))["items"].tolist()
    assert old != young, "the ranker is there, and knows an age"
    worse = replace(ranker, train=Backwards())
    left, figures = ran(declared(folder, recall=recall, ranking=worse), site)
    assert figures["trial/train/ranking/ndcg"] < figures["trial/train/recall/ndcg"]
    assert "train/ranking/ndcg" not in figures
    asked = rows_of("u1", "u2", "nobody")
    due = bundle.session.run(asked)["items"].tolist()
    assert left.session.run(asked)["items"].tolist() == due
    assert bundle.session.run(rows_of("u1"))["items"].shape == (1, 5)


def test_a_run_with_everything_repeats_to_the_bit(folder: Path, site: dt.Site) -> None:
    ranker = Ranker(
        model=MLP(hidden=(4,), dim=2), train=replace(QUICK, epochs=1), lists=60, held_out=0.3
    )
    steps = (Diverse(0.2), Explore(0.5, by="request"))
    system = declared(folder, ranking=ranker, rerank=steps)
    bundle, _ = ran(system, site)
    again, _ = ran(system, replace(site, work=str(site.work) + "-again"))
    assert bundle.graph.digest == again.graph.digest
    asked = rows_of("u1", "u1", request=np.array([5, MISSING_INT]))
    found = bundle.session.run(asked)
    assert (found["propensities"][0] < 1).any()
    assert (found["propensities"][1] == 1).all(), "without a request nothing is drawn"


class Rows:
    """Examples in memory: a user and an item each, in batches of three."""

    def __init__(self, user: np.ndarray, item: np.ndarray) -> None:
        self.user, self.item, self.events = user, item, self

    def batches(self, split: str, size: int = 0) -> Iterator[Batch]:
        for first in range(0, len(self.user), 3):
            part = slice(first, first + 3)
            yield Batch({"index": self.user[part, None], "item": self.item[part]})


def test_the_last_rows_of_each_user_are_held_out_and_recall_has_those_before() -> None:
    random = np.random.default_rng(0)
    user, item = random.integers(1, 9, 200), random.integers(0, 30, 200)
    user[:1] = 9  # who has a single row keeps it
    log = Log(Rows(user, item), 0, "item", np.arange(30))  # type: ignore[arg-type]
    last = log.last(0.25, 12)
    follow = last.followed()
    late = np.concatenate([follow(user[at : at + 7]) for at in range(0, 200, 7)])
    for who in range(12):
        due = int(np.ceil(0.25 * (user == who).sum())) if who not in (0, 1, 9) else 0
        assert late[user == who].sum() == due
        assert late[user == who].tolist() == sorted(late[user == who].tolist())
    both = np.unique(np.stack([user, item], 1)[user > 1], axis=0)
    starts = np.append(0, np.cumsum(np.bincount(both[:, 0], minlength=12)))
    had = Sparse(starts, both[:, 1].astype(np.int32), np.ones(len(both), np.float32), 30)
    counts = np.bincount(both[:, 1], minlength=30)
    kept = log.without(last, Interactions(np.arange(30), counts, had))
    held = {*zip(user[late].tolist(), item[late].tolist(), strict=True)}
    assert pairs_of(kept.had) == [pair for pair in pairs_of(had) if pair not in held]
    assert kept.counts.tolist() == np.bincount(kept.had.columns, minlength=30).tolist()
    assert pairs_of(log.had("train", kept, last)) == sorted(held)


def pairs_of(had: Sparse) -> list[tuple[int, int]]:
    rows = np.repeat(np.arange(had.rows), had.lengths)
    return [*zip(rows.tolist(), had.columns.tolist(), strict=True)]


def test_items_come_in_the_order_of_the_catalogue(folder: Path) -> None:
    table = dt.Parquet(str(folder / "films.parquet"))
    catalogue = np.array(["film 3", "film 7", "film 0"], object)
    items = described(catalogue, "item", table, (dt.Raw("old"), dt.Missing("old")))
    assert items.tensors["dense"].tolist() == [[1, 0], [0, 1], [0, 0], [0, 1]]
    twice = dt.Parquet(str(folder / "rows.parquet"))
    with pytest.raises(ValueError, match="two rows of 'film"):
        held(twice, ("age",), "item", catalogue)


def test_items_are_as_like_as_those_who_had_them() -> None:
    random = np.random.default_rng(0)
    x = random.random((400, 6)) < 0.3
    x[:, 1] = x[:, 0]
    user, place = np.nonzero(x)
    starts = np.append(0, np.cumsum(np.bincount(user, minlength=400)))
    ones = np.ones(len(place), np.float32)
    found = Interactions(np.arange(6), x.sum(0), Sparse(starts, place.astype(np.int32), ones, 6))
    vectors = likeness(found, width=2000)
    norm = np.linalg.norm(vectors, axis=1)
    cosine = vectors @ vectors.T / np.outer(norm, norm)
    due = x.T.astype(float) @ x / np.sqrt(np.outer(x.sum(0), x.sum(0)))
    np.testing.assert_allclose(cosine, due, atol=0.1)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another target": ({"target": "film"}, "Recommender.recall, target"),
    "fewer candidates": ({"candidates": 4}, "k or more"),
    "no table": ({"items": None}, "Recommender.items"),
    "no tuple": ({"rerank": Diverse(0.1)}, "a tuple"),
    "diverse twice": ({"rerank": (Diverse(0.1), Diverse(0.2))}, "Diverse twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_declaration_that_cannot_be_is_refused(case: str, folder: Path) -> None:
    changes, text = WRONG[case]
    with pytest.raises(ValueError, match=text):
        declared(folder, **changes)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Ranker(model=MLP(), held_out=1.0), "Ranker.held_out"),
        (lambda: Ranker(model=MLP(), lists=0), "Ranker.lists"),
    ],
    ids=["shares", "lists"],
)
def test_a_ranker_that_cannot_be_is_refused(make: Callable[[], Ranker], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_a_history_of_something_else_than_items_is_refused(folder: Path, site: dt.Site) -> None:
    ranker = Ranker(model=MLP(), history="recent")
    with pytest.raises(ValueError, match=r"Ranker\.history, column 'recent': found 'int64 \[3\]'"):
        dt.run(declared(folder, ranking=ranker), site)


def test_a_strategy_says_what_it_reads(folder: Path) -> None:
    ranker = Ranker(model=MLP(), history="recent")
    steps = (Explore(0.5, by="request"),)
    system = declared(folder, ranking=ranker, rerank=steps)
    assert system.columns == ("user", "age", "recent", "request", "k")
    assert len(system.train.tables) == 1  # type: ignore[attr-defined]


def test_a_feature_that_is_not_there_is_named(folder: Path, site: dt.Site) -> None:
    ranker = Ranker(model=MLP(), features=("agee_scale",))
    with pytest.raises(ValueError, match=r"Ranker\.features"):
        dt.run(declared(folder, ranking=ranker), site)
