"""Lists beside plain loops: the same choices, and propensities that are what happens."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.batch import Batch
from drivetrain.core.graph import Session
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.train.recall.nodes import Nodes
from drivetrain.train.rerank.listing import fields, listed
from drivetrain.train.rerank.steps import Allowed, Blocked, Diverse, Explore, Rerank, check

Array = np.ndarray[Any, Any]
INF = float("inf")
RAW = Schema(
    (
        Field("request", "string"),
        Field("at", "timestamp"),
        Field("country", "string"),
        Field("genres", "int64", (2,)),
        Field("amount", "float32"),
    )
)


def session(
    steps: tuple[Rerank, ...],
    wide: int,
    k: int,
    vectors: Array | None = None,
    attributes: dict[str, Array] | None = None,
) -> Session:
    """A graph of nothing but the choice: candidates and raw columns to a list."""
    n = Nodes()
    found = listed(
        n,
        "given_places",
        "given_scores",
        k=k,
        wide=wide,
        steps=steps,
        schema=RAW,
        attributes=attributes or {},
        vectors=vectors,
    )
    given_fields = [
        Field("given_places", "int64", (wide,)),
        Field("given_scores", "float32", (wide,)),
    ]
    outputs = [
        (Field("candidates", "int64", (k,)), found.candidates),
        (Field("places", "int64", (k,)), found.places),
        (Field("scores", "float32", (k,)), found.scores),
        (Field("propensities", "float32", (k,)), found.propensities),
    ]
    return n.build([*given_fields, *fields(steps, RAW)], outputs).session(threads=1)


def asked(scores: Any, places: Any = None, **columns: Any) -> Batch:
    scores = np.atleast_2d(np.array(scores, np.float32))
    if places is None:
        places = np.tile(np.arange(scores.shape[1]), (len(scores), 1))
    return Batch({"given_scores": scores, "given_places": np.array(places, np.int64), **columns})


def texts(*values: str) -> Array:
    return np.array(values, object)


def relevance(scores: Array) -> Array:
    """Of one row's candidates: 0 the worst, 1 the best, -inf none."""
    wide = np.minimum(
        np.where(np.isnan(scores), -INF, scores).astype(np.float64), 3.4028234663852886e38
    )
    real = wide[wide > -INF]
    if not len(real) or real.max() == real.min():
        return np.where(wide > -INF, 0.0, -INF)
    return np.where(wide > -INF, (wide - real.min()) / (real.max() - real.min()), -INF)


def greedy(scores: Array, places: Array, vectors: Array, weight: float, k: int) -> list[int]:
    """Maximal marginal relevance as it is defined: which candidates, in order."""
    worth = relevance(scores)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    chosen: list[int] = []
    for _ in range(min(k, int((worth > -INF).sum()))):
        best, most = -1, -INF
        for candidate in range(len(scores)):
            if candidate in chosen or worth[candidate] == -INF:
                continue
            like = max(
                (float(unit[places[candidate]] @ unit[places[c]]) for c in chosen), default=-1.0
            )
            value = (1 - weight) * worth[candidate] - weight * like
            if value > most:
                best, most = candidate, value
        chosen.append(best)
    return chosen


def test_without_steps_the_best_are_listed_and_equal_ones_in_their_order() -> None:
    found = session((), 5, 3).run(
        asked([[1, 3, 2, 3, 0], [0, 0, -INF, 0, 0]], [[9, 8, 7, 6, 5]] * 2)
    )
    assert found["candidates"].tolist() == [[1, 3, 2], [0, 1, 3]]
    assert found["places"].tolist() == [[8, 6, 7], [9, 8, 6]]
    assert found["scores"].tolist() == [[3, 3, 2], [0, 0, 0]]
    assert found["propensities"].tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    "steps", [(), (Diverse(0.3),), (Explore(),), (Diverse(0.3), Explore())], ids=str
)
def test_places_that_no_item_is_left_for_have_none(steps: tuple[Rerank, ...]) -> None:
    nan = float("nan")
    rows = asked(
        [[nan, 2, -INF, 1], [-INF] * 4, [nan] * 4, [1, INF, 3.4e38, -3.4e38]],
        request=texts("a", "b", "", ""),
    )
    found = session(steps, 4, 6, np.eye(4)).run(rows)
    lost = np.isneginf(found["scores"])
    assert lost.sum(axis=1).tolist() == [4, 6, 6, 2]
    assert (np.isnan(found["propensities"]) == lost).all()
    assert (found["candidates"][lost] == 0).all()
    assert (np.diff(lost.astype(int)) >= 0).all(), "they stand behind"
    assert sorted(found["candidates"][0, :2].tolist()) == [1, 3]
    assert found["candidates"][3].tolist()[:4] == [1, 2, 0, 3], "not drawn: the best first"
    assert ((found["propensities"] > 0) | lost).all()


def test_no_rows_give_no_rows() -> None:
    attributes = {"sold_in": texts("de", "fr", "", "de"), "kinds": np.array([1, 2, 3, MISSING_INT])}
    raw: dict[str, Any] = {"request": texts(), "country": texts(), "genres": np.zeros((0, 2), int)}
    filters = (Allowed("country", "sold_in"), Blocked("genres", "kinds"))
    every: list[tuple[Rerank, ...]] = [(), filters, (Diverse(0.5), Explore()), (Explore(),)]
    for steps in every:
        rows = asked(np.zeros((0, 4)), np.zeros((0, 4)), **raw)
        found = session(steps, 4, 3, np.eye(4), attributes).run(rows)
        assert found["places"].shape == (0, 3)


# -- diversity -------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=25)
def test_the_diverse_list_is_that_of_the_greedy_loop(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    wide, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 14))
    rows, items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 20))
    weight = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
    vectors = random.normal(size=(items, 5)) * random.choice([0, 1, 1e-20, 1e18], (items, 1))
    places = np.stack([random.choice(items + wide, wide, replace=False) for _ in range(rows)])
    scores = random.normal(size=(rows, wide)).astype(np.float32)
    scores[random.random((rows, wide)) < 0.2] = -INF
    table = np.concatenate([vectors, np.zeros((wide, 5))])  # whoever is beyond is like none
    found = session((Diverse(weight),), wide, k, vectors).run(asked(scores, places))
    for row in range(rows):
        order = np.argsort(-scores[row], kind="stable")
        due = greedy(scores[row][order], places[row][order], table, weight, k)
        assert found["candidates"][row, : len(due)].tolist() == order[due].tolist()
        assert np.isneginf(found["scores"][row, len(due) :]).all()
        assert (found["scores"][row, : len(due)] == scores[row][order[due]]).all()
        assert (found["propensities"][row, : len(due)] == 1).all()


def test_of_equal_worth_the_higher_score_comes_first_then_the_earlier_candidate() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]])
    found = session((Diverse(1.0),), 5, 5, vectors).run(asked([[1, 5, 4, 4, 3]]))
    # 2, 3 and 4 are equally far from 1, so 2; then 3 is like 2, and 4 like nothing; 3, 0 are left
    assert found["candidates"].tolist() == [[1, 2, 4, 3, 0]]


def test_a_vector_that_is_no_number_is_like_none() -> None:
    vectors = np.array([[1, 0], [np.nan, 0], [np.inf, 1], [1, 1e-9]])
    found = session((Diverse(0.6),), 4, 4, vectors).run(asked([[4, 3, 2, 1]]))
    assert found["candidates"].tolist() == [[0, 1, 2, 3]]


def test_diversity_without_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match="Diverse: found 'no vectors of the items'"):
        session((Diverse(0.5),), 3, 2)


# -- exploration -----------------------------------------------------------------------------------


def likely(scores: Array, order: list[int], temperature: float) -> list[float]:
    """Plackett and Luce: each place's chance, given those before it."""
    logits = relevance(scores) / temperature
    found: list[float] = []
    for number, candidate in enumerate(order):
        left = [i for i in range(len(scores)) if i not in order[:number]]
        most = max(logits[i] for i in left)
        chances = [math.exp(logits[i] - most) for i in left]
        found.append(math.exp(logits[candidate] - most) / math.fsum(chances))
    return found


@given(data=st.data())
@settings(max_examples=25)
def test_propensities_are_those_of_plackett_and_luce(data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    wide = data.draw(st.integers(1, 9))
    k = data.draw(st.integers(1, wide))
    temperature = data.draw(st.sampled_from([1e-3, 0.05, 0.3, 1.0, 1000.0]))
    scores = random.normal(size=(3, wide)).astype(np.float32) * np.float32(
        random.choice([1e-20, 1, 1e20])
    )
    steps = (Explore(temperature),)
    found = session(steps, wide, k).run(asked(scores, request=texts("x", "y", "z")))
    for row in range(3):
        order = found["candidates"][row].tolist()
        due = likely(scores[row], order, temperature)
        assert found["propensities"][row] == pytest.approx(due, rel=2e-6, abs=1e-38)


def chi_square(counts: Array, chances: Array) -> float:
    expected = chances * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("diverse", [(), (Diverse(0.4),)], ids=["alone", "diverse"])
def test_what_is_drawn_happens_as_often_as_its_propensity_says(diverse: tuple[Rerank, ...]) -> None:
    """The lists of 30,000 requests with fixed names; bounds at about one in 10^5."""
    requests = 30_000
    scores = np.array([1.0, 0.8, 0.5, 0.0], np.float32)
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [-1, 0.5]])
    steps = (*diverse, Explore(0.5))
    names = texts(*(f"request {i}" for i in range(requests)))
    found = session(steps, 4, 2, vectors).run(asked(np.tile(scores, (requests, 1)), request=names))
    pairs, where, counts = np.unique(
        found["candidates"] @ [4, 1], return_inverse=True, return_counts=True
    )
    assert len(pairs) == 12, "every list of two"
    each = found["propensities"].astype(np.float64).prod(axis=1)
    chances = np.array([each[where == i][0] for i in range(12)])
    assert all(np.ptp(each[where == i]) < 1e-9 for i in range(12)), "the same list as likely again"
    assert chances.sum() == pytest.approx(1, abs=1e-6)
    assert chi_square(counts, chances) < 45  # 11 degrees of freedom
    # neighbouring requests tell nothing of one another
    first = found["candidates"][:, 0]
    met = np.bincount(first[:-1] * 4 + first[1:], minlength=16)
    share = np.bincount(first, minlength=4) / requests
    assert chi_square(met, np.outer(share, share).reshape(-1)) < 45  # about 9


def test_the_same_request_has_the_same_list_whatever_is_asked_beside_it() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(50, 20)).astype(np.float32)
    names = texts(*(f"r{i}" for i in range(50)))
    for steps in ((Explore(0.3),), (Diverse(0.3), Explore(0.3))):
        answer = session(steps, 20, 5, random.normal(size=(20, 4)))
        whole = answer.run(asked(scores, request=names))
        alone = answer.run(asked(scores[7:8], request=names[7:8]))
        assert whole["places"][7].tolist() == alone["places"][0].tolist()
        other = answer.run(asked(scores[7:8], request=texts("another")))
        assert other["places"][0].tolist() != alone["places"][0].tolist()


def test_a_request_without_a_name_is_not_drawn() -> None:
    rows = asked(
        [[3, 1, 2]] * 4,
        request=texts("", "a", "", "b"),
        at=np.array([1, MISSING_INT, MISSING_INT, 5]),
    )
    for diverse in ((), (Diverse(0.0),)):
        steps = (*diverse, Explore(1000.0, by=("request", "at")))
        found = session(steps, 3, 3, np.eye(3)).run(rows)
        assert found["candidates"][:3].tolist() == [[0, 2, 1]] * 3
        assert (found["propensities"][:3] == 1).all()
        assert found["propensities"][3] == pytest.approx([1 / 3, 1 / 2, 1], rel=1e-3)


def test_what_names_a_request_is_read_in_order_and_to_its_256th_byte() -> None:
    schema = Schema((*RAW, Field("b", "int64"), Field("c", "int64")))
    numbers = np.arange(2000) % 7
    scores = np.zeros((2000, 6), np.float32)

    def places(by: tuple[str, ...], **columns: Any) -> Array:
        n = Nodes()
        steps = (Explore(1.0, by=by),)
        found = listed(n, "given_places", "given_scores", k=6, wide=6, steps=steps, schema=schema,
                       attributes={}, vectors=None)  # fmt: skip
        ends = [Field("given_places", "int64", (6,)), Field("given_scores", "float32", (6,))]
        graph = n.build(
            [*ends, *fields(steps, schema)], [(Field("o", "int64", (6,)), found.places)]
        )
        return graph.session(threads=1).run(asked(scores, **columns))["o"]

    there, back = (places(by, b=numbers, c=numbers[::-1]) for by in (("b", "c"), ("c", "b")))
    equal, apart = numbers == numbers[::-1], (there != back).any(axis=1)
    assert apart[~equal].mean() > 0.95, "b then c is not c then b"
    assert not apart[equal].any()
    long = texts(*("x" * 255 + str(i % 10) + f"tail {i}" for i in range(2000)))
    found = places(("request",), request=long)
    assert (found == found[np.arange(2000) % 10]).all()
    assert len(np.unique(found[:10], axis=0)) > 5


# -- filters ---------------------------------------------------------------------------------------

COUNTRY = texts("de", "fr", "", "de")
SOME = np.array([[1, 3], [MISSING_INT, 2], [9, 9], [MISSING_INT, MISSING_INT]])
GENRES = np.array([[1, 2], [3, MISSING_INT], [MISSING_INT, MISSING_INT], [2, 3]])


@pytest.mark.parametrize(
    ("step", "columns", "left"),
    [
        (Allowed("country", "country"), {"country": texts("de", "fr", "", "xx")},
         [[0, 3], [1], [0, 1, 2, 3, 4], []]),
        (Blocked("country", "country"), {"country": texts("de", "fr", "", "xx")},
         [[1, 2, 4], [0, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
        (Allowed("genres", "genres"), {"genres": SOME},
         [[0, 1, 3], [0, 3], [], [0, 1, 2, 3, 4]]),
        (Blocked("genres", "genres"), {"genres": SOME},
         [[2, 4], [1, 2, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
    ],
    ids=["allowed", "blocked", "allowed several", "blocked several"],
)  # fmt: skip
def test_filters_leave_out_what_the_request_says(
    step: Any, columns: dict[str, Array], left: list[list[int]]
) -> None:
    """The fifth candidate is none of the four items that the attributes are of."""
    attributes = {"country": COUNTRY, "genres": GENRES}
    for others in ((), (Diverse(0.0),)):
        answer = session((*others, step), 5, 5, np.zeros((4, 2)), attributes)
        found = answer.run(asked([[5, 4, 3, 2, 1]] * 4, [[0, 1, 2, 3, 77]] * 4, **columns))
        real = ~np.isneginf(found["scores"])
        assert [
            row[there].tolist() for row, there in zip(found["candidates"], real, strict=True)
        ] == left


def test_filters_come_before_what_is_drawn() -> None:
    steps = (Explore(1.0), Allowed("country", "country"))
    rows = asked([[5, 4, 3, 2]] * 3, country=texts("de", "fr", "xx"), request=texts("1", "2", "3"))
    found = session(steps, 4, 2, None, {"country": COUNTRY}).run(rows)
    assert sorted(found["places"][0].tolist()) == [0, 3]
    assert found["propensities"][0].prod() < 1
    assert found["propensities"][0, 1] == found["propensities"][1, 0] == 1, "the only one left"
    assert np.isnan(found["propensities"][2]).all()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Diverse(1.5), r"Diverse\.weight: found 1\.5, allowed: 0 to 1"),
        (lambda: Diverse(float("nan")), r"Diverse\.weight"),
        (lambda: Explore(0), r"Explore\.temperature: found 0, allowed"),
        (lambda: Explore(float("nan")), r"Explore\.temperature"),
        (lambda: Explore(by=()), r"Explore\.by"),
        (lambda: check((Diverse(0.1), Diverse(0.2))), "found 'Diverse twice', allowed: once"),
        (lambda: check(("no step",)), "rerank: found 'no step', allowed: Allowed"),  # type: ignore[arg-type]
        (lambda: fields((Explore(by="amount"),), RAW), "Explore.by, column 'amount': found 'float"),
        (lambda: fields((Explore(by="requst"),), RAW), "unknown column 'requst' in Explore"),
        (lambda: fields((Allowed("amount", "x"),), RAW), "Allowed, column 'amount'"),
        (lambda: session((Allowed("country", "contry"),), 3, 2, None, {"country": COUNTRY}),
         "unknown attribute 'contry' in Allowed. Did you mean 'country'"),
        (lambda: session((Blocked("country", "genres"),), 3, 2, None, {"genres": GENRES}),
         "Blocked, attribute 'genres': found 'int64', allowed: string"),
    ],
)  # fmt: skip
def test_declarations_that_mean_nothing_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
