"""Fused recall: standardized sums, weights that held-out pairs teach, one reading of the rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logged import Logged
from scipy.optimize import minimize

from drivetrain.core.batch import Batch
from drivetrain.core.learner import Learner
from drivetrain.core.metric import Metric
from drivetrain.core.online import Online
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Run
from drivetrain.train.als import ALS
from drivetrain.train.ease import EASE
from drivetrain.train.fused import Fused
from drivetrain.train.item_neighbours import ItemNeighbours
from drivetrain.train.popularity import Popularity
from drivetrain.train.recall.fusing import LIST, List, Trial, learnt, likeliest
from drivetrain.train.recall.graph import Scorer, Serving
from drivetrain.train.recall.interactions import Interactions, read
from drivetrain.train.recall.method import Recall
from drivetrain.train.recall.nodes import Nodes

USERS, ITEMS = 60, 24


class Log(Logged):
    """Made rows of users with two tastes; how often items are had falls off."""

    features = FeatureSchema(
        (FeatureField(name="who", kind="index", cardinality=USERS, columns=("name",)),)
    )
    schema = Schema(
        (Field("name", "int64"), Field("item", "int64"), Field("recent", "int64", (3,)))
    )

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.user = random.integers(0, USERS - 2, 900)
        self.item = (random.random(900) ** 1.5 * (ITEMS // 2)).astype(int) * 2 + self.user % 2
        self.stars = random.integers(1, 6, 900)
        self.columns = {
            "index": self.user[:, None],
            "name": self.user,
            "item": self.item,
            "stars": self.stars,
            "recent": np.stack([self.item] * 3, axis=1),
        }
        self.read = 0

    def batches(self, split: Any, *args: Any, size: int = 0, **kwargs: Any) -> Any:
        self.read += not size
        return self.pieces(400)


METHODS = (
    EASE(target="item", l2=3.0),
    ALS(target="item", factors=4, iterations=3, l2=1.0),
    Popularity(target="item"),
)
WEIGHTS = (0.7, 1.5, -0.2)


def fit(strategy: Any, log: Log, folder: Path) -> tuple[Any, dict[str, float]]:
    heard: list[Any] = []
    graph = strategy.fit(None, log, Run(directory=folder, emit=heard.append))
    return graph, {item.name: item.value for item in heard if isinstance(item, Metric)}


def interactions(log: Log) -> Interactions:
    return read(log, column=0, item="item", weight=None, emit=lambda item: None)


def asked(graph: Any, users: Any, **columns: Any) -> tuple[np.ndarray, np.ndarray]:
    found = graph.run(Batch({"index": np.array(users)[:, None], **columns}))
    return found["items"], found["scores"]


def all_scores(method: Any, log: Log, users: Any, catalogue: np.ndarray, folder: Path) -> Any:
    """A method's own scores of all items, by asking for all, ``[users, items]``."""
    graph, _ = fit(replace(method, k=len(catalogue), seen="keep"), log, folder)
    items, scores = asked(graph, users)
    order = np.argsort(catalogue)
    place = order[np.searchsorted(catalogue[order], items)]
    found = np.empty_like(scores)
    np.put_along_axis(found, place, scores, axis=1)
    return found


def standardized(scores: np.ndarray) -> np.ndarray:
    mean, deviation = (f(scores, axis=1, keepdims=True) for f in (np.mean, np.std))
    return (scores - mean) / np.maximum(deviation, 1e-12)


def test_a_score_is_the_weighted_sum_of_standardized_ones(tmp_path: Path) -> None:
    log = Log()
    strategy = Fused(target="item", methods=METHODS, weights=WEIGHTS, k=ITEMS)
    graph, figures = fit(strategy, log, tmp_path)
    catalogue = interactions(log).catalogue
    users = [*range(USERS), 7]
    each = [all_scores(m, log, users, catalogue, tmp_path) for m in METHODS]
    due = sum(w * standardized(s) for w, s in zip(WEIGHTS, each, strict=True))
    had = {(u, i) for u, i in zip(log.user, log.item, strict=True) if u >= 2}
    place = {item: at for at, item in enumerate(catalogue.tolist())}
    items, scores = asked(graph, users)
    for row, user in enumerate(users):
        left = [i for i in catalogue.tolist() if (user, i) not in had]
        listed = items[row][: len(left)].tolist()
        assert sorted(listed) == sorted(left)
        own = [due[row][place[item]] for item in listed]
        np.testing.assert_allclose(scores[row][: len(left)], own, rtol=1e-4, atol=1e-4)
        assert (np.diff(scores[row][: len(left)]) <= 0).all()
        assert np.isnan(scores[row][len(left) :]).all()
    assert [figures[f"train/weight/{n}"] for n in ("ease", "als", "popularity")] == [*WEIGHTS]
    assert figures["train/loss/als"] > 0


def test_candidates_tell_the_parts_of_their_scores_and_of_whom_nothing_is_known(
    tmp_path: Path,
) -> None:
    log, run = Log(), Run(directory=tmp_path)
    strategy = Fused(target="item", methods=METHODS, weights=WEIGHTS, k=ITEMS)
    found = strategy.interactions(log, run)
    served = strategy.serving(log, found)
    scorer = strategy.scorer(log, found, run, served)
    assert scorer.several is not None
    assert scorer.several.names == ("ease", "als", "popularity")
    n = Nodes()
    best = served.candidates(n, found, scorer)
    outputs = [
        (Field("places", "int64", (ITEMS,)), best.places),
        (Field("scores", "float32", (ITEMS,)), best.scores),
        (Field("parts", "float32", (ITEMS, 3)), best.parts),
        (Field("unknown", "bool", (1,)), best.unknown),
    ]
    users = np.arange(USERS)
    answer = n.build(served.inputs(scorer), outputs).run(Batch({"index": users[:, None]}))
    there = np.isfinite(answer["scores"])
    assert not answer["parts"][~there].any()
    np.testing.assert_allclose(
        (answer["parts"] @ np.array(WEIGHTS))[there], answer["scores"][there], rtol=1e-4, atol=1e-4
    )
    whole = served.scored(found, scorer).run(Batch({"index": users[:, None]}))["parts"]
    for row in range(USERS):
        places = answer["places"][row][there[row]]
        np.testing.assert_allclose(
            whole[row][:, places].T, answer["parts"][row][there[row]], rtol=1e-5, atol=1e-5
        )
    assert answer["unknown"][:, 0].tolist() == [u < 2 or u not in log.user for u in range(USERS)]


def test_weights_are_the_likeliest_and_no_others(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    lists = []
    for _ in range(80):
        scores = random.standard_normal((30, 3)).astype(np.float32)
        sums = scores @ [1.5, 0.5, 0.0]
        chance = np.exp(sums) / np.exp(sums).sum()
        lists.append(List(scores, random.choice(30, 3, replace=False, p=chance)))

    def cost(weights: np.ndarray) -> float:
        value = 0.02 * weights @ weights
        for each in lists:
            sums = each.scores.astype(float) @ weights
            value -= (sums[each.had] - np.log(np.exp(sums).sum())).mean() / len(lists)
        return value

    found = likeliest(lists)
    due = minimize(cost, np.zeros(3), method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(found, due.x, atol=1e-4)
    assert found[0] > found[1] > abs(found[2])


def test_weights_are_learnt_from_the_items_that_would_be_shown(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    scores = random.standard_normal((LIST + 70, 2)).astype(np.float32)
    pool = List(scores, np.array([3, 90]))
    weights = np.array([2.0, 1.0])
    best = pool.best(weights)
    order = np.argsort(-(scores @ weights))[:LIST]
    np.testing.assert_array_equal(best.scores, scores[np.sort(order)])
    shown = {tuple(scores[place]) for place in (3, 90) if place in order}
    assert {tuple(row) for row in best.scores[best.had]} == shown
    assert learnt([replace(pool, had=np.array([], int))], 2).tolist() == [1, 1]
    assert learnt([], 3).tolist() == [1, 1, 1]


def test_pairs_held_out_are_a_seeded_part_and_nobody_loses_all() -> None:
    found = interactions(Log())
    trial, again = Trial.of(found, 0.2, 0), Trial.of(found, 0.2, 0)
    assert trial.out.columns.tolist() == again.out.columns.tolist()
    assert Trial.of(found, 0.2, 1).out.columns.tolist() != trial.out.columns.tolist()
    share = len(trial.out.columns) / len(found.had.columns)
    assert 0.1 < share < 0.3
    for user in range(USERS):
        kept, out, had = (
            set(m.columns[m.starts[user] : m.starts[user + 1]].tolist())
            for m in (trial.kept.had, trial.out, found.had)
        )
        assert not kept & out
        assert kept | out == had
        assert bool(kept) == bool(had)
    assert (trial.kept.counts + np.bincount(trial.out.columns, minlength=ITEMS)).tolist() == (
        found.counts.tolist()
    )


def test_learnt_weights_favour_the_method_that_knows(tmp_path: Path) -> None:
    log = Log()
    noise = Noise(target="item")
    strategy = Fused(target="item", methods=(METHODS[0], noise), k=5)
    _, figures = fit(strategy, log, tmp_path)
    assert figures["train/weight/ease"] > 0.5
    assert abs(figures["train/weight/noise"]) < 0.15
    assert log.read == 3, "twice for the interactions, once for whom the weights are learnt from"
    _, again = fit(strategy, log, tmp_path)
    assert again == figures


class Noise(Recall):
    """Scores by what has nothing to do with anybody."""

    def scorer(self, source: Any, found: Interactions, run: Run, served: Serving) -> Scorer:
        wide = len(found.catalogue) + served.spare(found)
        values = np.random.default_rng(5).standard_normal((found.had.rows, wide))
        return Scorer(
            score=lambda n, asked: n.op("Gather", n.held(values.astype(np.float32)), asked.user)
        )


def test_a_history_is_the_profile_of_all_methods_that_have_one(tmp_path: Path) -> None:
    log = Log()
    own = replace(METHODS[0], history="recent")
    strategy = Fused(target="item", methods=(own, METHODS[1]), weights=(1.0, 0.5), k=4)
    assert strategy.columns == ("recent",)
    graph, _ = fit(strategy, log, tmp_path)
    assert graph.inputs.names == ("index", "recent")
    rows = np.array([[3, 5, 7], [2, 4, 6]])
    items, _ = asked(graph, [1, 1], recent=rows)
    assert (items % 2).tolist() == [[1] * 4, [0] * 4]
    learnt = replace(strategy, weights=None)
    assert fit(learnt, log, tmp_path)[0].inputs.names == ("index", "recent")


def test_who_is_met_while_it_serves_is_answered_by_all_methods(tmp_path: Path) -> None:
    log = Log()
    learning = replace(METHODS[1], online=Online(capacity=3, recent=4))
    strategy = Fused(target="item", methods=(METHODS[0], learning), weights=(1.0, 1.0), k=8)
    graph, _ = fit(strategy, log, tmp_path)
    plain, _ = fit(replace(strategy, methods=METHODS[:2]), log, tmp_path)
    index = np.array([[1], [7], [9]])
    session = graph.session(1)
    untold = session.raw({"index": index}, ["items", "scores"])
    items, scores = asked(plain, index[:, 0])
    np.testing.assert_array_equal(untold[0], items)
    np.testing.assert_allclose(untold[1], scores, rtol=1e-4, atol=1e-5)
    learner = Learner.of(graph.model)
    assert learner is not None
    for item in (1, 5, 7, 999):  # nobody had the last one in training
        learner.tell((500, item))
    fed = {**learner.rows(np.array([500, 501, 7])), **learner.tensors()}
    told, _ = session.raw({"index": np.array([[1], [1], [9]]), **fed}, ["items", "scores"])
    assert (told[0] % 2).tolist() == [1] * 8, "by the taste of what was had since"
    assert not {1, 5, 7, 999} & {*told[0].tolist()}
    assert 999 not in untold[0]
    ease = fit(replace(METHODS[0], k=8, seen="keep", history="recent"), log, tmp_path)[0]
    weights = replace(strategy, weights=(1.0, 0.0), k=3)
    alone = fit(weights, log, tmp_path)[0].session(1)
    found, _ = alone.raw({"index": index[:1], **learner.rows(np.array([500])),
                          **learner.tensors()}, ["items", "scores"])  # fmt: skip
    due, _ = asked(ease, [1], recent=np.array([[1, 5, 7]]))
    left = [item for item in due[0].tolist() if item not in (1, 5, 7)]
    assert found[0].tolist() == left[:3]


def test_a_method_without_weights_counts_each_pair_once_beside_one_that_has_them(
    tmp_path: Path,
) -> None:
    log = Log()
    plain, starred = METHODS[0], replace(METHODS[0], weight="stars")
    users = range(USERS)
    both = Fused(
        target="item", methods=(plain, starred), weights=(1.0, 0.0), weight="stars", k=ITEMS
    )
    alone = Fused(target="item", methods=(plain, METHODS[2]), weights=(1.0, 0.0), k=ITEMS)
    for weights, other in (((1.0, 0.0), alone), ((0.0, 1.0), replace(alone, methods=(starred,
                           METHODS[2]), weight="stars"))):  # fmt: skip
        found = asked(fit(replace(both, weights=weights), log, tmp_path)[0], users)
        due = asked(fit(other, log, tmp_path)[0], users)
        np.testing.assert_allclose(found[1], due[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": METHODS[:1]}, r"Fused\.methods: found"),
        ({"methods": (METHODS[0], "als")}, r"methods\[1\]: found 'str'"),
        ({"methods": (METHODS[0], EASE(target="film"))}, r"methods\[1\]\.target: found 'film'"),
        ({"weights": (1.0,)}, r"Fused\.weights: found .*allowed: 3 numbers"),
        ({"held_out": 1.0}, r"Fused\.held_out"),
        ({"methods": (METHODS[1], EASE(target="item", weight="stars"))}, r"\[1\]\.weight"),
        (
            {
                "methods": (
                    EASE(target="item", history="recent"),
                    ItemNeighbours(target="item", history="last"),
                )
            },
            r"Fused\.methods, history: found \('recent', 'last'\)",
        ),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_declared(change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fused(**{"target": "item", "methods": METHODS, **change})
