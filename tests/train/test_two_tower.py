"""Two towers: what is answered to whom, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tastes import ITEMS, RECENT, USERS, Attributes, Tastes  # beside this file
from two_towers import HOLDING, METHOD, TRAIN, had, likes

import drivetrain as dt
from drivetrain.core.batch import Batch
from drivetrain.core.catalogue import Catalogue
from drivetrain.core.graph import Graph
from drivetrain.core.metric import Metric
from drivetrain.core.schema import MISSING_INT
from drivetrain.core.seams import Run
from drivetrain.train import (
    AllReduce,
    BinaryCrossEntropy,
    Private,
    Prune,
    QuantizationAware,
)
from drivetrain.train.content import Content
from drivetrain.train.recall.attributes import with_further
from drivetrain.train.recall.interactions import FIRST_USER, Interactions
from drivetrain.train.sampled_softmax import SampledSoftmax
from drivetrain.train.towers import served
from drivetrain.train.towers.pairs import HISTORY
from drivetrain.train.towers.towers import Towers
from drivetrain.train.two_tower import TwoTower

KEEP: Any = {"seen": "keep", "k": ITEMS + 5}


class Fitted:
    """What a strategy made of tastes: the graph, the towers in it, and what it told."""

    def __init__(self, method: TwoTower, tastes: Tastes, folder: Path) -> None:
        self.method, self.tastes = method, tastes
        heard: list[Any] = []
        towers: list[Towers] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(served, "on_cpu", lambda fitted: towers.append(fitted) or fitted.eval())
            run = Run(directory=folder, emit=heard.append)
            self.graph: Graph = method.fit(None, tastes, run)  # pyright: ignore[reportArgumentType]
        self.figures = {m.name: m.value for m in heard if isinstance(m, Metric)}
        self.towers = towers[0]
        catalogue = Catalogue.of(self.graph)
        assert catalogue is not None
        self.items = catalogue.items.tolist()

    def ask(self, table: dict[str, Any]) -> tuple[Any, Any]:
        found = self.graph.run(Batch({name: table[name] for name in self.graph.inputs.names}))
        return found["items"], found["scores"]

    def due(self, table: dict[str, Any]) -> Any:
        """What torch gives for each item, ``[rows, items]``."""
        tensors = dict(table)
        place = {item: at for at, item in enumerate(self.items, start=1)}
        recent = [[place.get(item, 0) for item in row] for row in table["recent"].tolist()]
        tensors[HISTORY] = np.array(recent)
        names = self.towers.user.features.tensors.names
        with torch.no_grad():
            vectors = self.towers.user(*(torch.from_numpy(tensors[name]) for name in names))
            loss: Any = self.method.train.loss
            return (vectors @ self.towers.item.all().T).numpy() / loss.temperature


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Users alone, whose items are numbers."""
    return Fitted(replace(METHOD, **KEEP), Tastes(), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def holding(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Users and histories, whose items are text."""
    method = replace(HOLDING, **KEEP)
    return Fitted(method, Tastes(text=True), tmp_path_factory.mktemp("holding"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """All kinds of features, a history that is a mean, no hidden layer, what was had left out."""
    method = replace(HOLDING, hidden=(), pooling="mean", k=12, weight="stars")
    return Fitted(method, Tastes(more=True), tmp_path_factory.mktemp("whole"))


def check(answer: tuple[Any, Any], due: Any, catalogue: list[Any]) -> None:
    """An answer has the best scores in order, and each item has the score that is its due."""
    place = {item: at for at, item in enumerate(catalogue)}
    for listed, given, row in zip(answer[0].tolist(), answer[1], due, strict=True):
        best = np.sort(row[np.isfinite(row)])[::-1][: len(listed)]
        np.testing.assert_allclose(given[: len(best)], best, rtol=1e-4, atol=1e-4)
        own = [row[place[item]] for item in listed[: len(best)]]
        np.testing.assert_allclose(given[: len(best)], own, rtol=1e-4, atol=1e-4)
        assert np.isnan(given[len(best) :]).all()
        assert all(item in (MISSING_INT, "") for item in listed[len(best) :])


def test_the_graph_answers_what_torch_does_for_all_items(holding: Fitted) -> None:
    table = {n: c[:90] for n, c in holding.tastes.table("test").items()}
    table["index"][:4, 0] = [0, 1, USERS - 1, 5]
    counts = had(holding.tastes).counts
    due = holding.due(table)
    empty = (table["recent"] == "").all(1)
    unknown = (table["index"][:, 0] < FIRST_USER) | (table["index"][:, 0] >= USERS - 5)
    assert unknown.any()
    due[empty & unknown] = counts
    answer = holding.ask(table)
    check(answer, due, holding.items)
    for row in range(5):  # alone as among others
        alone = holding.ask({name: column[row : row + 1] for name, column in table.items()})
        np.testing.assert_allclose(alone[1][0], answer[1][row], rtol=1e-4, atol=1e-5)
    none = holding.ask({name: column[:0] for name, column in table.items()})
    assert [answered.shape for answered in none] == [(0, ITEMS + 5)] * 2


def test_all_kinds_of_features_enter_and_what_was_had_is_left_out(whole: Fitted) -> None:
    assert set(whole.graph.inputs.names) == {"dense", "index", "words", "face", "recent"}
    table = {name: column[:300] for name, column in whole.tastes.table("test").items()}
    table["index"][:2, 1] = [0, 1]
    due = whole.due(table)
    found = had(whole.tastes)
    assert whole.items == found.catalogue.tolist()
    for row, user, recent in zip(due, table["index"][:, 1], table["recent"].tolist(), strict=True):
        row[found.had.columns[found.had.starts[user] : found.had.starts[user + 1]]] = -np.inf
        row[[whole.items.index(item) for item in recent if item in whole.items]] = -np.inf
    check(whole.ask(table), due, whole.items)


def test_it_learns_tastes_that_popularity_does_not_know(plain: Fitted) -> None:
    table = plain.tastes.table("test")
    known = table["index"][:, 0] >= FIRST_USER
    table = {name: column[known] for name, column in table.items()}
    answer = plain.ask(table)
    assert likes(answer, table["index"][:, 0] % 2).mean() > 0.95
    popular = had(plain.tastes).catalogue[:10]
    hits = (answer[0][:, :10] == table["item"][:, None]).any(1).mean()
    assert hits > 1.3 * np.isin(table["item"], popular).mean() > 0


def test_who_is_not_known_is_answered_by_how_often_items_were_had(plain: Fitted) -> None:
    found = had(plain.tastes)
    strangers = np.array([[0], [1], [USERS - 1]])
    items, scores = plain.ask({"index": strangers})
    count = len(plain.items)
    assert items[:, :count].tolist() == [found.catalogue.tolist()] * 3
    assert scores[:, :count].tolist() == [found.counts.tolist()] * 3


def test_who_is_not_known_is_answered_from_a_history_where_there_is_one(holding: Fitted) -> None:
    recent = np.array([["i2", "i6", "", "i10"], ["i3", "i5", "nothing", "i1"], [""] * 4], object)
    for stranger in (0, 1, USERS - 1):
        table = {"index": np.full((3, 1), stranger), "recent": recent}
        answer = holding.ask(table)
        assert (likes((answer[0][:2], None), [0, 1]) > 0.8).all()
        assert answer[0][2, :5].tolist() == had(holding.tastes).catalogue[:5].tolist()


def test_who_is_not_known_is_answered_from_the_other_features(whole: Fitted) -> None:
    table = {name: column[:2] for name, column in whole.tastes.table("test").items()}
    table["index"][:, 1] = [1, USERS - 1]
    table["dense"][:, 0] = [-1, 1]  # what even and odd users have
    table["recent"][...] = MISSING_INT
    assert (likes(whole.ask(table), [0, 1]) > 0.8).all()


def test_items_that_nobody_had_are_placed_by_what_is_said_of_them(tmp_path: Path) -> None:
    content = Content(target="item", items=Attributes(), categories=("taste",), width=4)
    method = replace(METHOD, content=content, unknown=0.3, hidden=(8,), **KEEP)
    assert method.tables == (content.items,)
    fitted = Fitted(method, Tastes(), tmp_path)
    items = fitted.items
    known = len(had(fitted.tastes).catalogue)
    assert sorted(items[known:])[-10:] == list(range(ITEMS, ITEMS + 10))
    table = {"index": np.arange(FIRST_USER, USERS - 5)[:, None], "recent": np.zeros((0, RECENT))}
    due = fitted.due({**table, "recent": np.zeros((len(table["index"]), RECENT), int)})
    check(fitted.ask(table), due, items)
    new = due[:, known:]
    mine = np.array(items[known:]) % 2 == table["index"] % 2
    assert new[mine].mean() > new[~mine].mean() + 1, "of the user's taste and of the other"
    answer, _ = fitted.ask({"index": np.array([[1]])})
    assert answer[0, :known].tolist() == items[:known], "whom nobody knows gets none of them"


def test_items_of_which_nothing_is_known_come_last(tmp_path: Path, plain: Fitted) -> None:
    class Widened(TwoTower):
        """Among methods of which another knows further items."""

        def widened(self, found: Interactions) -> Interactions:
            return with_further(found, list(range(ITEMS, ITEMS + 3)))

    method = Widened(**vars(plain.method))
    graph: Any = method.fit(None, Tastes(), Run(directory=tmp_path))  # type: ignore[arg-type]
    table = {"index": np.arange(FIRST_USER, USERS)[:, None]}
    found = graph.run(Batch(table))
    there = ~np.isnan(found["scores"])
    last = [row[mask][-3:].tolist() for row, mask in zip(found["items"], there, strict=True)]
    assert last == [[ITEMS, ITEMS + 1, ITEMS + 2]] * len(table["index"])


def test_it_tells_how_training_went(plain: Fitted) -> None:
    figures = plain.figures
    assert figures["train/items"] == len(plain.items)
    assert 0 < figures["train/loss"] < np.log(ITEMS)
    assert 0 < figures["validate/loss"] < np.log(ITEMS)


def test_a_bundle_takes_the_raw_columns_of_user_features_and_history(
    tmp_path: Path, site: Any
) -> None:
    table = Tastes().table("train")
    part = dt.random_parts(table["index"][:, 0], seed=0)
    recent = pa.FixedSizeListArray.from_arrays(pa.array(table["recent"].reshape(-1)), RECENT)
    columns = {"user": table["index"][:, 0], "age": table["dense"][:, 0], "item": table["item"]}
    rows = pa.table({**columns, "recent": recent, "part": part.tolist()})
    pq.write_table(rows, tmp_path / "rows.parquet")
    method: Any = replace(HOLDING, user=None, pooling="mean", hidden=())
    system = dt.System(
        name="tastes",
        events=dt.Parquet(str(tmp_path / "rows.parquet")).split(dt.ColumnSplit("part")),
        features=(dt.Index("user"), dt.Scale("age")),
        targets=("item",),
        train=method,
        probes=(dt.Ranking(k=10, recall=0.1),),
    )
    bundle = dt.run(system, site)
    assert bundle is not None
    assert bundle.manifest.inputs.names == ("user", "age", "recent")
    asked = {"user": np.array([999, 999]), "age": np.array([-1, 1], np.float32)}
    held = np.array([[0, 4, 8, MISSING_INT], [1, 5, 9, MISSING_INT]])
    found = bundle.session.run(Batch({**asked, "recent": held}))
    assert (likes((found["items"], None), [0, 1]) > 0.8).all()


def of(**options: Any) -> Callable[[], Any]:
    return lambda: TwoTower(target="item", **options)


def by(**options: Any) -> Callable[[], Any]:
    return lambda: of(train=replace(TRAIN, **options))()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (of(dim=0), r"TwoTower\.dim: found 0"),
        (of(hidden=(8, 0)), r"TwoTower\.hidden: found \(8, 0\)"),
        (of(hidden=[8]), r"TwoTower\.hidden: found \[8\]"),
        (of(pooling="max"), "unknown pooling 'max'"),
        (of(dropout=1.0), r"TwoTower\.dropout: found 1\.0"),
        (of(unknown=-0.1), r"TwoTower\.unknown: found -0\.1"),
        (of(content="films"), r"TwoTower\.content: found 'str'"),
        (
            of(content=Content(target="film", items=Attributes(), text=("taste",))),
            r"TwoTower\.content\.target: found 'film'",
        ),
        (of(train="single"), r"TwoTower\.train: found 'str'"),
        (by(loss=BinaryCrossEntropy("item")), r"TwoTower\.train\.loss.*SampledSoftmax"),
        (by(privacy=Private(clip_norm=1, delta=1e-5, epsilon=1)), r"TwoTower\.train\.privacy"),
        (by(prune=Prune()), r"TwoTower\.train\.prune"),
        (by(quantize=QuantizationAware()), r"TwoTower\.train\.quantize"),
        (by(compile=True), r"TwoTower\.train\.compile"),
    ],
)
def test_options_out_of_range_are_refused_where_they_are_declared(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_several_processes_may_train_it_where_its_strategy_takes_several() -> None:
    assert not METHOD.distributed
    assert replace(METHOD, train=AllReduce(loss=SampledSoftmax())).distributed


def test_a_history_holds_the_items_own_type(tmp_path: Path) -> None:
    method = replace(METHOD, history="stars")
    with pytest.raises(ValueError, match="stars"):
        method.fit(None, Tastes(), Run(directory=tmp_path))  # type: ignore[arg-type]
