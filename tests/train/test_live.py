"""The graph of a factorization that goes on to learn: what is fed is answered from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import pytest

from drivetrain.compress.optimize import optimized
from drivetrain.compress.quantize import Quantize
from drivetrain.core import in_bytes
from drivetrain.core.batch import Batch
from drivetrain.core.catalogue import Catalogue
from drivetrain.core.graph import Graph
from drivetrain.core.learner import Learner
from drivetrain.core.learner_tensors import FOUND, FOUND_SCORES, HAD, ITEMS, NEW, USER
from drivetrain.core.online import Online
from drivetrain.core.schema import MISSING_INT, FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Run
from drivetrain.train.als import ALS
from drivetrain.train.ease import EASE
from drivetrain.train.fused import Fused
from drivetrain.train.recall.live import FEW
from drivetrain.train.recall.nodes import Nodes

USERS, OF, ROWS = 30, 25, 300


@dataclass
class Log:
    """A made log in memory. Positions 0 and 1 of the users' index are missing and rare."""

    text: bool = False

    features = FeatureSchema(
        (FeatureField(name="who", kind="index", cardinality=USERS + 2, columns=("name",)),)
    )
    targets = Schema(())

    @property
    def events(self) -> "Log":
        return self

    @property
    def schema(self) -> Schema:
        kind: Any = "string" if self.text else "int64"
        return Schema((Field("name", kind), Field("item", kind)))

    def rows(self, split: Any) -> int:
        return ROWS

    def batches(self, split: Any, *args: Any, size: int = 70, **kwargs: Any) -> Iterator[Batch]:
        random = np.random.default_rng(0)
        who = random.integers(0, USERS, ROWS)
        item = (random.random(ROWS) ** 2 * OF).astype(np.int64)
        for first in range(0, ROWS, 70):
            part = slice(first, first + 70)
            yield Batch(
                {
                    "index": who[part, None] + 2,
                    "name": self.named("u", who[part]),
                    "item": self.named("i", item[part]),
                }
            )

    def named(self, kind: str, numbers: Any) -> np.ndarray:
        if self.text:
            return np.array([f"{kind}{n}" for n in numbers], object)
        return np.asarray(numbers) * 10 + 1


METHOD = ALS(
    target="item", k=6, factors=5, iterations=4, l2=1.0, online=Online(capacity=4, recent=5)
)


def fitted(log: Log, method: ALS, folder: Path) -> Graph:
    return method.fit(None, log, Run(directory=folder))


def asked(graph: Graph, positions: Any, **fed: Any) -> tuple[np.ndarray, np.ndarray]:
    index = np.asarray(positions, np.int64)[:, None]
    items, scores = graph.session(1).raw({"index": index, **fed}, ["items", "scores"])
    return items, scores


@pytest.fixture(params=[False, True], ids=["int64", "text"])
def log(request: Any) -> Log:
    return Log(text=request.param)


@pytest.fixture
def graph(log: Log, tmp_path: Path) -> Graph:
    return fitted(log, METHOD, tmp_path)


Feeds = Callable[[Learner, np.ndarray], Mapping[str, np.ndarray]]


@pytest.fixture(params=["graph", "finder"])
def feeds(request: pytest.FixtureRequest) -> Feeds:
    """What a run is fed: the graph finds the best items, or they were found before it."""
    if request.param == "finder":
        if not in_bytes.there():
            pytest.skip("NOT TESTED: this processor multiplies no bytes, or nothing was compiled")
        return Learner.feeds
    return lambda learner, users: {**learner.rows(users), **learner.tensors()}


def test_a_graph_that_is_fed_nothing_answers_as_one_that_does_not_learn(
    graph: Graph, log: Log, tmp_path: Path
) -> None:
    plain = fitted(log, replace(METHOD, online=None), tmp_path)
    positions = [0, 1, *range(2, USERS + 2)]
    items, scores = asked(graph, positions)
    due, score = asked(plain, positions)
    assert items.tolist() == due.tolist()
    np.testing.assert_allclose(scores, score, rtol=1e-5, atol=1e-6)
    assert graph.inputs == plain.inputs
    assert graph.live == {USER, HAD, ITEMS, NEW, FOUND, FOUND_SCORES}
    catalogue, other = Catalogue.of(graph), Catalogue.of(plain)
    assert catalogue is not None
    assert other is not None
    assert catalogue.items.tolist() == other.items.tolist()
    assert catalogue.counts.tolist() == other.counts.tolist()


def test_a_learner_that_was_told_nothing_gives_what_the_graph_holds(
    graph: Graph, log: Log, feeds: Feeds
) -> None:
    learner = Learner.of(graph.model)
    assert learner is not None
    assert learner.columns == ("name", "item")
    names = log.named("u", np.arange(USERS))
    fed = feeds(learner, names)
    for one, other in zip(
        asked(graph, range(2, USERS + 2), **fed), asked(graph, range(2, USERS + 2)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_new_users_and_new_items_are_answered_as_soon_as_they_were_told(
    graph: Graph, log: Log, feeds: Feeds
) -> None:
    learner = Learner.of(graph.model)
    assert learner is not None
    catalogue = Catalogue.of(graph)
    assert catalogue is not None
    user, new = log.named("u", [USERS + 5])[0], log.named("i", [OF + 3])[0]
    fans = log.named("u", range(8))
    for who in [user, *fans]:
        for item in [catalogue.items[3], new]:
            learner.tell((who, item))
    users = np.array([user, *fans, log.named("u", [USERS + 6])[0]], object if log.text else None)
    fed = feeds(learner, users)
    positions = [1, *range(2, 10), 1]
    items, scores = asked(graph, positions, **fed)
    vectors, trained = learner.read(users), asked(graph, positions)
    there = [*catalogue.items.tolist(), *learner.tensors()[NEW].tolist()]
    for row, (who, listed) in enumerate(zip(users, items.tolist(), strict=True)):
        missing = "" if log.text else MISSING_INT
        assert listed.count(missing) == 0
        if who != users[-1]:
            assert not {new, catalogue.items[3]} & {*listed}, "they were had"
            places = [there.index(item) for item in listed]
            due = learner.tensors()[ITEMS][places] @ vectors[row]
            np.testing.assert_allclose(scores[row], due, rtol=1e-5, atol=1e-6)
    assert np.isnan(vectors[-1]).all()
    # Who is not known is answered with what was had most, events included.
    counts = learner.tensors()[ITEMS][:, -1]
    assert scores[-1].tolist() == sorted(counts, reverse=True)[: METHOD.k]
    assert trained[1][-1].tolist() != scores[-1].tolist()


def test_new_items_are_recommended_to_all_and_free_places_to_nobody(
    log: Log, tmp_path: Path, feeds: Feeds
) -> None:
    graph = fitted(log, replace(METHOD, k=40), tmp_path)
    learner = Learner.of(graph.model)
    assert learner is not None
    missing = "" if log.text else MISSING_INT
    before, _ = asked(graph, [3, 1])
    new = log.named("i", [OF + 3, OF + 4])
    for user in log.named("u", range(4, 8)):
        for item in new:
            learner.tell((user, item))
    users = log.named("u", [1, USERS + 7])
    items, scores = asked(graph, [3, 1], **feeds(learner, users))
    for listed, score, old in zip(items.tolist(), scores, before.tolist(), strict=True):
        there = [item for item in listed if item != missing]
        assert sorted(there) == sorted([item for item in old if item != missing] + new.tolist())
        assert np.isfinite(score[: len(there)]).all()
        assert np.isnan(score[len(there) :]).all()


def test_what_was_told_is_found_once_it_is_shown(graph: Graph, log: Log, tmp_path: Path) -> None:
    """An item of a post that is being told is nobody's yet, also where all are looked at anew."""
    catalogue = Catalogue.of(graph)
    assert catalogue is not None
    items = len(catalogue.items)
    learner = Learner.of(fitted(log, replace(METHOD, k=items), tmp_path).model)
    assert learner is not None
    if learner.finder is None:
        pytest.skip("NOT TESTED: this processor multiplies no bytes, or nothing was compiled")
    learner.tell((log.named("u", [4])[0], log.named("i", [OF + 3])[0]))
    shown = learner.shown()
    equal, first = np.zeros((1, shown[ITEMS].shape[1]), np.float32), np.zeros(1, np.int32)
    for last in (items - 1, items):
        (places,) = learner.finder.find(equal, [first])(shown)[FOUND].tolist()
        assert [place for place in places if place != learner.beyond] == [*range(1, last + 1)]
        learner.changed()


def test_what_was_had_stays_where_it_is_to_be_kept(log: Log, tmp_path: Path, feeds: Feeds) -> None:
    graph = fitted(log, replace(METHOD, k=25, seen="keep"), tmp_path)
    learner, catalogue = Learner.of(graph.model), Catalogue.of(graph)
    assert learner is not None
    assert catalogue is not None
    user = log.named("u", [USERS + 1])
    learner.tell((user[0], catalogue.items[0]))
    items, _ = asked(graph, [1], **feeds(learner, user))
    assert items[0, 0] == catalogue.items[0]


def test_rows_are_answered_by_their_own_live_rows_however_many_there_are(
    graph: Graph, log: Log, feeds: Feeds
) -> None:
    learner = Learner.of(graph.model)
    assert learner is not None
    numbers = np.arange(600)
    users = log.named("u", numbers)
    random = np.random.default_rng(1)
    for user in users[:300]:
        for item in log.named("i", random.integers(0, OF, 3)):
            learner.tell((user, item))
    positions = np.where(numbers < USERS, numbers + 2, 1)
    whole = asked(graph, positions, **feeds(learner, users))
    for row in (0, 29, 30, 255, 256, 299, 300, 599):
        some = slice(row, row + 1)
        alone = asked(graph, positions[some], **feeds(learner, users[some]))
        assert whole[0][some].tolist() == alone[0].tolist()
        np.testing.assert_allclose(whole[1][some], alone[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1])
def test_scores_are_the_products_of_live_tensors_however_few_rows_there_are(
    log: Log, tmp_path: Path, rows: int, feeds: Feeds
) -> None:
    graph = fitted(log, replace(METHOD, k=OF, seen="keep"), tmp_path)
    learner, catalogue = Learner.of(graph.model), Catalogue.of(graph)
    assert learner is not None
    assert catalogue is not None
    users = log.named("u", np.arange(rows) + USERS)
    for number, user in enumerate(users):
        for place in (number, number + 3, number + 4):
            learner.tell((user, catalogue.items[place % len(catalogue.items)]))
    fed = feeds(learner, users)
    items, scores = asked(graph, [1] * rows, **fed)
    trained = len(catalogue.items)
    whole = learner.read(users) @ learner.tensors()[ITEMS][:trained].T
    due = -np.sort(-whole, axis=1)
    np.testing.assert_allclose(scores[:, :trained], due, rtol=1e-5, atol=1e-6)
    places = {item: place for place, item in enumerate(catalogue.items.tolist())}
    for row, listed in enumerate(items.tolist()):
        there = [places[item] for item in listed[:trained]]
        np.testing.assert_allclose(whole[row, there], due[row], rtol=1e-5, atol=1e-6)


def inner(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside of a graph's nodes."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
                yield from inner(attribute.g)


@pytest.mark.parametrize("online", [METHOD.online, None], ids=["online", "frozen"])
def test_exclusions_are_written_where_the_scores_are_since_both_are_known_to_be_of_one_shape(
    log: Log, tmp_path: Path, online: Online | None
) -> None:
    proto = fitted(log, replace(METHOD, online=online), tmp_path).proto
    found = [
        (graph, node)
        for graph in inner(onnx.shape_inference.infer_shapes(proto).graph)
        for node in graph.node
        if node.op_type == "ScatterElements"
    ]
    ((body, excluded),) = found
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in body.value_info
    }
    scores = shapes[excluded.input[0]]
    assert len(scores) == 2
    assert scores[0] == "rows to 256"
    assert scores == shapes[excluded.output[0]]


def product(inputs: int) -> Graph:
    """``x`` to ``index``, through a product that can be quantized."""
    nodes = Nodes()
    made = nodes.op("MatMul", "x", nodes.held(np.eye(inputs, 1, dtype=np.float32)))
    return nodes.build(
        [Field("x", "float32", (inputs,))],
        [(Field("index", "int64", (1,)), nodes.op("Cast", nodes.op("Round", made), to=7))],
    )


@pytest.mark.parametrize("how", ["joined", "behind", "basic", "extended", "int8"])
def test_live_tensors_stay_live_and_the_learner_is_found(
    graph: Graph, log: Log, how: str, feeds: Feeds
) -> None:
    last = Nodes()
    negative = last.op("Neg", "scores")
    behind = last.build(
        [Field("scores", "float32", (6,))], [(Field("loss", "float32", (6,)), negative)]
    )
    made = product(3).join(graph)
    if how == "behind":
        made = made.join(behind, keep=("items",))
    if how in ("basic", "extended"):
        made = optimized(made, how)
    if how == "int8":
        rows = Batch({"x": np.random.default_rng(0).random((64, 3), np.float32) * 20})
        made = Quantize("int8")(made, lambda: [rows])
    learner = Learner.of(made.model)
    assert learner is not None
    assert made.live == graph.live
    assert made.session(1).live == set(learner.names.values())
    assert made.inputs.names == ("x",)
    user = log.named("u", [USERS + 1])
    catalogue = Catalogue.of(made)
    assert catalogue is not None
    learner.tell((user[0], catalogue.items[2]))
    fed = feeds(learner, user)
    (items,) = made.session(1).raw({"x": np.array([[1, 0, 0]], np.float32), **fed}, ["items"])
    due, _ = asked(graph, [1], **fed)
    assert items.tolist() == due.tolist()
    assert items.tolist() != asked(graph, [1])[0].tolist()


def test_live_tensors_of_one_name_do_not_join(graph: Graph) -> None:
    nodes = Nodes()
    taken = nodes.live(ITEMS, np.zeros((1, 6), np.float32))
    other = nodes.build(
        [Field("scores", "float32", (6,))],
        [(Field("loss", "float32", (6,)), nodes.op("Add", "scores", taken))],
    )
    with pytest.raises(ValueError, match=f"found twice: {ITEMS};"):
        graph.join(other)


def test_a_sum_of_methods_of_which_one_learns_recommends_what_comes_new(
    log: Log, tmp_path: Path, feeds: Feeds
) -> None:
    methods = (EASE(target="item", l2=3.0), METHOD)
    fused = Fused(target="item", k=40, methods=methods, weights=(0.3, 0.7))
    graph = fused.fit(None, log, Run(directory=tmp_path))
    learner = Learner.of(graph.model)
    assert learner is not None
    before, _ = asked(graph, [3])
    new = log.named("i", [OF + 3])[0]
    told = log.named("u", [9, *range(4, 8)])
    for user in told:
        learner.tell((user, new))
    users = log.named("u", [1, 9])
    items, scores = asked(graph, [3, 11], **feeds(learner, users))
    assert new not in before[0].tolist()
    at = items[0].tolist().index(new)
    assert np.isfinite(scores[0, at])
    assert new not in items[1].tolist(), "it was had"


def test_online_learning_counts_a_pair_once_so_weights_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"ALS\.weight: found 'stars', allowed: None where online is declared"
    ):
        replace(METHOD, weight="stars")


@pytest.mark.parametrize(
    ("columns", "kind", "message"),
    [
        (("name", "item"), "int64", r"ALS\.online, feature 'who': found .*, allowed: an Index"),
        (("name",), "float32", r"feature 'who', column 'name': found 'float32', allowed: string"),
    ],
)
def test_a_user_that_events_cannot_name_is_refused(
    tmp_path: Path, columns: tuple[str, ...], kind: Any, message: str
) -> None:
    class Other(Log):
        features = FeatureSchema(
            (FeatureField(name="who", kind="index", cardinality=USERS + 2, columns=columns),)
        )
        schema = Schema((Field("name", kind), Field("item", "int64")))

    with pytest.raises(ValueError, match=message):
        fitted(Other(), METHOD, tmp_path)


def test_users_who_share_a_position_are_refused(tmp_path: Path) -> None:
    class Hashed(Log):
        def batches(self, split: Any, *args: Any, **kwargs: Any) -> Iterator[Batch]:
            for batch in super().batches(split, *args, **kwargs):
                yield batch.with_columns({"index": batch["index"] // 2 + 1})

    with pytest.raises(ValueError, match=r"column 'name': found .* at one position"):
        fitted(Hashed(), METHOD, tmp_path)
