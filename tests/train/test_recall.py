"""Recall methods: what is read of the events, what is answered, and to whom."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.catalogue import Catalogue
from drivetrain.core.graph import Graph
from drivetrain.core.metric import Emitted, Metric
from drivetrain.core.schema import MISSING_INT, FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Run
from drivetrain.train.als import ALS
from drivetrain.train.ease import EASE, closed_form
from drivetrain.train.item_neighbours import ItemNeighbours
from drivetrain.train.popularity import Popularity
from drivetrain.train.recall import graph as graph_module
from drivetrain.train.recall.interactions import Interactions, read

USERS, ITEMS, ROWS = 30, 25, 400
METHODS = (
    Popularity(target="item"),
    ItemNeighbours(target="item", neighbours=6, shrink=2.0),
    EASE(target="item", l2=3.0),
    EASE(target="item", l2=3.0, neighbours=6),
    ALS(target="item", factors=5, iterations=3),
    EASE(target="item", l2=3.0, even=0.5),
)
IDS = ("popularity", "neighbours", "ease", "ease-cut", "als", "ease-even")


@dataclass
class Log:
    """A made log in memory: users as an index has them, items as the events do.

    The first two users are missing and rare. Batches of events have other borders than those of
    the examples.
    """

    text: bool = False
    rows_of: dict[str, int] = field(default_factory=lambda: {"train": ROWS, "validate": 60})

    features = FeatureSchema(
        (
            FeatureField(name="other", kind="index", cardinality=3),
            FeatureField(name="who", kind="index", cardinality=USERS),
        )
    )
    targets = Schema(())

    @property
    def events(self) -> "Events":
        return Events(self)

    def table(self, split: str) -> dict[str, Any]:
        random = np.random.default_rng(["train", "validate"].index(split))
        rows = self.rows_of[split]
        user = random.integers(0, USERS - 1, rows)  # the last one has nothing
        number = (random.random(rows) ** 2 * ITEMS).astype(np.int64)
        item: Any = number * 7 - 20
        if self.text:
            item = np.array([f"i{n}" for n in number], object)
        return {"user": user, "item": item, "stars": random.integers(0, 4, rows)}

    def rows(self, split: Any) -> int:
        return self.rows_of[split]

    def batches(self, split: Any, *args: Any, size: int, **kwargs: Any) -> Iterator[Batch]:
        user = self.table(split)["user"]
        for first in range(0, len(user), 150):
            part = user[first : first + 150]
            yield Batch({"index": np.stack([np.zeros_like(part), part], axis=1)})


@dataclass
class Events:
    log: Log
    schema: Schema = Schema((Field("item", "int64"), Field("recent", "int64", (4,))))

    def batches(self, split: Any, *args: Any) -> Iterator[Batch]:
        table = self.log.table(split)
        for first in range(0, self.log.rows_of[split], 70):
            part = {name: table[name][first : first + 70] for name in ("item", "stars")}
            if self.log.text:
                values, codes = np.unique(part["item"], return_inverse=True)
                part["item"] = Categorical(codes.astype(np.int32), np.append(values, "unused"))
            yield Batch(part)


def fit(strategy: Any, log: Any, folder: Path) -> tuple[Graph, list[Emitted]]:
    heard: list[Emitted] = []
    graph = strategy.fit(None, log, Run(directory=folder, emit=heard.append))
    return graph, heard


def ask(graph: Graph, users: list[int], **columns: Any) -> tuple[np.ndarray, np.ndarray]:
    index = np.stack([np.zeros(len(users), np.int64), np.array(users, np.int64)], axis=1)
    found = graph.run(Batch({"index": index, **columns}))
    return found["items"], found["scores"]


def interactions(log: Any, weight: str | None = None) -> Interactions:
    return read(log, column=1, item="item", weight=weight, emit=lambda item: None)


def dense(found: Interactions) -> np.ndarray:
    had = found.had
    matrix = np.zeros((had.rows, had.wide))
    matrix[np.repeat(np.arange(had.rows), had.lengths), had.columns] = had.weights
    return matrix


def scores_of(strategy: Any, log: Any, found: Interactions) -> np.ndarray:
    """What each method's definition gives for each user, float64 ``[users, items]``."""
    x = dense(found)
    popular = np.tile(found.counts.astype(float), (len(x), 1))
    if isinstance(strategy, Popularity):
        return popular
    if isinstance(strategy, ALS):
        users, items = strategy.factorized(found.had, Run(directory=Path()))
        scores = users.factors.astype(float) @ items.factors.T.astype(float)
    else:
        if isinstance(strategy, EASE):
            lengths = np.maximum((x > 0).sum(axis=1), 1)
            counts = lengths**-strategy.even
            counts *= (x > 0).sum() / (counts * (x > 0).sum(axis=1)).sum()
            weights = closed_form(x.T @ (counts[:, None] * x), strategy.l2).astype(float)
        else:
            norms = np.sqrt((x**2).sum(axis=0))
            weights = x.T @ x / (np.outer(norms, norms) + strategy.shrink)
        if strategy.neighbours is not None:
            np.fill_diagonal(weights, 0)
            for row in weights:
                row[np.argsort(-row, kind="stable")[strategy.neighbours :]] = 0
            weights = np.maximum(weights, 0)
        scores = x @ weights
    return np.where(x.any(axis=1, keepdims=True), scores, popular)


def check(answer: tuple[np.ndarray, np.ndarray], due: np.ndarray, catalogue: np.ndarray) -> None:
    """An answer has the best scores in order, and each item has the score that is its due."""
    items, scores = answer
    place = {item: at for at, item in enumerate(catalogue.tolist())}
    for listed, given, row in zip(items.tolist(), scores, due, strict=True):
        best = np.sort(row[np.isfinite(row)])[::-1][: len(listed)]
        shown = given[: len(best)]
        np.testing.assert_allclose(shown, best, rtol=1e-4, atol=1e-5)
        own = [row[place[item]] for item in listed[: len(best)]]
        np.testing.assert_allclose(shown, own, rtol=1e-4, atol=1e-5)
        assert np.isnan(given[len(best) :]).all()
        assert all(item in (MISSING_INT, "") for item in listed[len(best) :])
        assert len(set(listed[: len(best)])) == len(best)


@pytest.mark.parametrize("k", [3, ITEMS + 5])
@pytest.mark.parametrize("text", [False, True], ids=["int64", "text"])
@pytest.mark.parametrize("strategy", METHODS, ids=IDS)
def test_the_graph_answers_the_best_of_all_items(
    strategy: Any, text: bool, k: int, tmp_path: Path
) -> None:
    log = Log(text)
    strategy = replace(strategy, k=k, user="who")
    graph, heard = fit(strategy, log, tmp_path)
    assert graph.inputs.names == ("index",)
    assert graph.outputs == Schema(
        (Field("items", "string" if text else "int64", (k,)), Field("scores", "float32", (k,)))
    )
    found = interactions(log)
    scores = scores_of(strategy, log, found)
    scores[dense(found) > 0] = -np.inf
    users = [*range(USERS), 5, 1]
    answer = ask(graph, users)
    check(answer, scores[users], found.catalogue)
    for number, user in enumerate(users[:8]):  # alone as among others
        items, alone = ask(graph, [user])
        assert items.tolist() == answer[0][number : number + 1].tolist()
        np.testing.assert_allclose(alone[0], answer[1][number], rtol=1e-5)
    assert [answered.shape for answered in ask(graph, [])] == [(0, k), (0, k)]
    kept, _ = fit(replace(strategy, seen="keep"), log, tmp_path)
    check(ask(kept, users), scores_of(strategy, log, found)[users], found.catalogue)
    figures = {m.name: m.value for m in heard if isinstance(m, Metric)}
    assert figures["train/items"] == len(found.catalogue)
    assert figures["train/interactions"] == (dense(found) > 0).sum()


def test_many_rows_go_through_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "SCORES", 7 * ITEMS)
    log, strategy = Log(), replace(METHODS[4], user="who", k=4)
    graph, _ = fit(strategy, log, tmp_path)
    monkeypatch.undo()
    whole, _ = fit(strategy, log, tmp_path)
    users = np.random.default_rng(0).integers(0, USERS, 100).tolist()
    items, scores = ask(graph, users)
    due, at = ask(whole, users)
    np.testing.assert_array_equal(items, due)
    np.testing.assert_allclose(scores, at, rtol=1e-5)


def test_equal_scores_come_by_how_often_an_item_was_had_and_then_by_itself(tmp_path: Path) -> None:
    log = Log()
    graph, _ = fit(Popularity(target="item", user="who", k=ITEMS, seen="keep"), log, tmp_path)
    items, scores = ask(graph, [5])
    real = ~np.isnan(scores[0])
    pairs = list(zip((-scores[0][real]).tolist(), items[0][real].tolist(), strict=True))
    assert pairs == sorted(pairs)
    assert len({score for score, _ in pairs}) < len(pairs), "some are equal"


def test_repeats_of_a_user_count_once_and_rows_of_unknown_users_one_each() -> None:
    log = Log()
    found, table = interactions(log), log.table("train")
    pairs = {(u, i) for u, i in zip(table["user"], table["item"], strict=True) if u >= 2}
    rows = [i for u, i in zip(table["user"], table["item"], strict=True) if u < 2]
    due = {i: sum(j == i for _, j in pairs) + rows.count(i) for i in set(table["item"].tolist())}
    assert dict(zip(found.catalogue.tolist(), found.counts.tolist(), strict=True)) == due
    assert len(found.had.columns) == len(pairs)
    assert not found.had.lengths[:2].any()
    assert (found.had.weights == 1).all()
    for user in range(USERS):
        columns = found.had.columns[found.had.starts[user] : found.had.starts[user + 1]]
        assert (np.diff(columns) > 0).all()


def test_weights_of_a_pair_are_summed(tmp_path: Path) -> None:
    log, sums = Log(), dict[tuple[int, int], float]()
    table = log.table("train")
    for user, item, stars in zip(*table.values(), strict=True):
        if user >= 2:
            sums[user, item] = sums.get((user, item), 0) + stars
    found = interactions(log, "stars")
    matrix = dense(found)
    for (user, item), due in sums.items():
        assert matrix[user, found.catalogue.tolist().index(item)] == due
    for strategy in METHODS[1:4]:
        weighted = replace(strategy, weight="stars", user="who", k=5)
        graph, _ = fit(weighted, log, tmp_path)
        scores = scores_of(strategy, log, found)
        scores[_had(found)] = -np.inf
        check(ask(graph, list(range(2, USERS - 1))), scores[2:-1], found.catalogue)


def _had(found: Interactions) -> np.ndarray:
    had = np.zeros((found.had.rows, found.had.wide), bool)
    had[np.repeat(np.arange(found.had.rows), found.had.lengths), found.had.columns] = True
    return had


def test_what_was_had_in_validation_rows_can_be_left_out_too(tmp_path: Path) -> None:
    log = Log()
    strategy = ALS(target="item", user="who", k=ITEMS, factors=4, seen_in=("train", "validate"))
    graph, _ = fit(strategy, log, tmp_path)
    both = [log.table(split) for split in ("train", "validate")]
    for user in range(2, USERS):
        items, scores = ask(graph, [user])
        had = {i for t in both for u, i in zip(t["user"], t["item"], strict=True) if u == user}
        listed = set(items[0][~np.isnan(scores[0])].tolist())
        assert listed == set(interactions(log).catalogue.tolist()) - had


class Whole(Log):
    """The same log, divided otherwise: all rows are for training."""

    def table(self, split: str) -> dict[str, Any]:
        train, validate = (Log().table(each) for each in ("train", "validate"))
        if split != "train":
            return {name: column[:0] for name, column in train.items()}
        return {name: np.concatenate([column, validate[name]]) for name, column in train.items()}


@pytest.mark.parametrize("strategy", METHODS, ids=IDS)
def test_what_learns_from_validation_rows_too_is_what_was_trained_on_both(
    strategy: Any, tmp_path: Path
) -> None:
    told = replace(strategy, user="who", k=9, learn_from=("train", "validate"))
    whole = Whole(rows_of={"train": ROWS + 60, "validate": 0})
    graph, _ = fit(told, Log(), tmp_path / "one")
    due, _ = fit(replace(strategy, user="who", k=9), whole, tmp_path / "other")
    only, _ = fit(replace(strategy, user="who", k=9), Log(), tmp_path / "train")
    users = list(range(USERS))
    for found, expected in zip(ask(graph, users), ask(due, users), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(ask(graph, users)[1], ask(only, users)[1])


@pytest.mark.parametrize("seen", ["exclude", "keep"])
@pytest.mark.parametrize("strategy", METHODS[1:4], ids=IDS[1:4])
def test_a_history_answers_for_who_is_not_known(strategy: Any, seen: str, tmp_path: Path) -> None:
    log = Log()
    strategy = replace(strategy, history="recent", user="who", k=6, seen=seen)
    assert strategy.columns == ("recent",)
    graph, _ = fit(strategy, log, tmp_path)
    assert graph.inputs.names == ("index", "recent")
    found = interactions(log)
    x = dense(found)
    catalogue = found.catalogue.tolist()
    none = MISSING_INT
    recent = np.array(
        [
            [catalogue[3], catalogue[0], catalogue[3], none],  # twice counts once
            [none, none, none, none],
            [catalogue[1], 999_999, none, none],  # an item that nobody had
            [none, catalogue[-1], catalogue[2], catalogue[5]],
            [999_999] * 4,
        ]
    )
    users = [1, 0, 7, 9, 8]
    profile = np.zeros((len(recent), len(catalogue)))
    for row, items in zip(profile, recent.tolist(), strict=True):
        row[[catalogue.index(item) for item in items if item in catalogue]] = 1
    weights = _weights(strategy, x)
    due = np.where(profile.any(axis=1, keepdims=True), profile @ weights, found.counts)
    if seen == "exclude":
        due[(profile > 0) | (x[users] > 0)] = -np.inf
    check(ask(graph, users, recent=recent), due, found.catalogue)


def _weights(strategy: Any, x: np.ndarray) -> np.ndarray:
    """The weights between items, by asking what a user of one item would be scored."""
    lone = Interactions(np.arange(x.shape[1]), np.ones(x.shape[1], np.int64), _sparse(x))
    if isinstance(strategy, EASE):
        weights = closed_form(x.T @ x, strategy.l2).astype(float)
    else:
        norms = np.sqrt((x**2).sum(axis=0))
        weights = x.T @ x / (np.outer(norms, norms) + strategy.shrink)
        np.fill_diagonal(weights, 0)
    if strategy.neighbours is not None:
        for row in weights:
            row[np.argsort(-row, kind="stable")[strategy.neighbours :]] = 0
        weights = np.maximum(weights, 0)
    assert lone.had.wide == len(weights)
    return weights


def _sparse(x: np.ndarray) -> Any:
    from drivetrain.train.recall.interactions import Sparse

    rows, columns = np.nonzero(x)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(x)))])
    return Sparse(starts, columns.astype(np.int32), x[rows, columns].astype(np.float32), x.shape[1])


def test_the_catalogue_lies_in_the_graph_also_behind_another(tmp_path: Path) -> None:
    import onnx

    log = Log()
    graph, _ = fit(ALS(target="item", user="who", k=60, factors=4), log, tmp_path)
    found = interactions(log)
    helper = onnx.helper
    value = helper.make_tensor_value_info("index", onnx.TensorProto.INT64, ["rows", 2])
    raw = helper.make_tensor_value_info("raw", onnx.TensorProto.INT64, ["rows", 2])
    before = helper.make_graph(
        [helper.make_node("Identity", ["raw"], ["index"])], "before", [raw], [value]
    )
    opsets = [helper.make_opsetid("", 20)]
    first = Graph.from_proto(helper.make_model(before, opset_imports=opsets))
    for served in (graph, first.join(graph)):
        catalogue = Catalogue.of(served)
        assert catalogue is not None
        assert catalogue.items.tolist() == found.catalogue.tolist()
        assert catalogue.counts.tolist() == found.counts.tolist()
    assert Catalogue.of(first) is None
    joined = first.join(graph).run(Batch({"raw": np.array([[0, 4], [0, 1]])}))
    np.testing.assert_array_equal(joined["items"], ask(graph, [4, 1])[0])


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ALS(target="item", k=0), r"ALS\.k: found 0"),
        (lambda: ALS(target="item", seen="hide"), "unknown seen 'hide'"),  # type: ignore[arg-type]
        (lambda: ALS(target="item", seen_in=("validate",)), r"ALS\.seen_in"),
        (lambda: ALS(target="item", learn_from=("validate",)), r"ALS\.learn_from"),
        (lambda: ALS(target="item", l2=0), r"ALS\.l2"),
        (lambda: ALS(target="item", alpha=float("nan")), r"ALS\.alpha"),
        (lambda: ALS(target="item", steps=0), r"ALS\.steps"),
        (lambda: EASE(target="item", l2=-1), r"EASE\.l2"),
        (lambda: EASE(target="item", neighbours=0), r"EASE\.neighbours"),
        (lambda: ItemNeighbours(target="item", shrink=-1), r"ItemNeighbours\.shrink"),
    ],
)
def test_options_out_of_range_are_refused_where_they_are_declared(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_the_users_index_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Popularity\.user.*'other', 'who'"):
        fit(Popularity(target="item"), Log(), tmp_path)
    with pytest.raises(ValueError, match=r"Popularity\.user: found 'whom'"):
        fit(Popularity(target="item", user="whom"), Log(), tmp_path)


class Spoilt(Log):
    """The log with one value replaced."""

    def __init__(self, name: str, values: Any) -> None:
        super().__init__()
        self.spoilt = (name, values)

    def table(self, split: str) -> dict[str, Any]:
        name, change = self.spoilt
        table = super().table(split)
        return {**table, name: change(table[name])}


def _with(value: Any) -> Any:
    def change(column: np.ndarray) -> np.ndarray:
        column = column.astype(type(value) if not isinstance(value, int) else np.int64)
        column[77] = value
        return column

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("item", _with(MISSING_INT), "target 'item': found a row without one"),
        ("item", lambda column: column.astype(np.float32), "found .*float32.* one string or int64"),
        ("item", lambda column: np.stack([column, column], 1), "one string or int64 a row"),
        ("stars", _with(-1), "column 'stars' of weights: found -1"),
        ("stars", _with(MISSING_INT), "column 'stars' of weights"),
        ("stars", _with(float("nan")), "column 'stars' of weights: found nan"),
        ("stars", lambda column: column.astype(str).astype(object), "one number a row"),
    ],
)
def test_rows_that_say_nothing_are_refused(
    name: str, change: Any, words: str, tmp_path: Path
) -> None:
    strategy = Popularity(target="item", user="who", weight="stars")
    with pytest.raises(ValueError, match=words):
        fit(strategy, Spoilt(name, change), tmp_path)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split 'train': found 0 rows"):
        fit(Popularity(target="item", user="who"), Log(rows_of={"train": 0}), tmp_path)


def test_a_history_must_hold_items(tmp_path: Path) -> None:
    strategy = ItemNeighbours(target="item", user="who", history="recent")
    with pytest.raises(ValueError, match=r"history.*int64 \[4\]', allowed: string \[n\]"):
        fit(strategy, Log(text=True), tmp_path)
    with pytest.raises(ValueError, match=r"history.*int64 \[\]', allowed: int64 \[n\]"):
        fit(replace(strategy, history="item"), Log(), tmp_path)
    with pytest.raises(ValueError, match=r"unknown column 'recently'.*'recent'"):
        fit(replace(strategy, history="recently"), Log(), tmp_path)


def test_more_items_than_can_be_inverted_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivetrain.train.ease.MOST_ITEMS", 5)
    with pytest.raises(ValueError, match="items of EASE: found"):
        fit(EASE(target="item", user="who"), Log(), tmp_path)


def test_a_graph_that_no_file_can_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivetrain.train.recall.nodes.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="allowed: 2 GiB"):
        fit(ALS(target="item", user="who"), Log(), tmp_path)
