"""Exact search beside a plain product of matrices, on every path that there is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core import in_bytes, retrieval
from drivetrain.core.retrieval import Exact

compiled, there = in_bytes.compiled, in_bytes.there()
PATHS = ["numpy", *["panels"] * (compiled is not None), *["bytes"] * there]


def take(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it searched in one of the ways."""
    monkeypatch.setattr(in_bytes, "compiled", None if path == "numpy" else compiled)
    monkeypatch.setattr(in_bytes, "there", lambda: path == "bytes")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    take(request.param, monkeypatch)
    return request.param


def slow(items: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ items.T.astype(np.float64)
    places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return places, np.take_along_axis(scores, places, axis=1)


def assert_best(places: np.ndarray, held: np.ndarray, asked: np.ndarray) -> None:
    """What was found is what a product of matrices says, but for the order of what is equal up to
    the rounding of a sum in float32."""
    k = places.shape[1]
    due, best = slow(held, asked, k)
    norms = (
        np.linalg.norm(asked.astype(float), axis=1)
        * np.linalg.norm(held.astype(float), axis=1).max()
    )
    own = np.take_along_axis(asked.astype(np.float64) @ held.T.astype(np.float64), places, axis=1)
    assert (np.abs(own - best) <= 1e-6 * norms[:, None]).all()
    assert all(len(set(row)) == k for row in places.tolist())
    assert (places == due).mean() > 0.99


@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_whole_numbers_give_the_order_of_the_definition_with_all_equals(data) -> None:
    items, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 19))
    queries, k = data.draw(st.integers(0, 30)), data.draw(st.integers(1, items))
    seed = data.draw(st.integers(0, 100))
    random = np.random.default_rng(seed)
    held = random.integers(-3, 4, (items, width)).astype(np.float32)
    asked = random.integers(-3, 4, (queries, width)).astype(np.float32)
    due = slow(held, asked, k)
    for path in PATHS:
        with pytest.MonkeyPatch.context() as patch:
            take(path, patch)
            patch.setattr(retrieval, "TOGETHER", 12)
            places, scores = Exact(held, threads=data.draw(st.integers(1, 3))).search(asked, k)
        np.testing.assert_array_equal(places, due[0])
        np.testing.assert_array_equal(scores, due[1])


@pytest.mark.parametrize("width", [1, 17, 64])
@pytest.mark.parametrize("k", [1, 33, 3000])
def test_many_items_in_blocks(width: int, k: int, path: str) -> None:
    random = np.random.default_rng(0)
    held = random.standard_normal((5003, width)).astype(np.float32)
    asked = random.standard_normal((25, width)).astype(np.float32)
    places, scores = Exact(held, threads=2).search(asked, k)
    assert_best(places, held, asked)
    own = np.take_along_axis(asked @ held.T, places, axis=1)
    np.testing.assert_allclose(scores, own, atol=1e-4)


def test_what_is_no_number_is_not_found(path: str) -> None:
    held = np.array([[1, 0], [np.nan, 1], [3, 0], [2, np.inf]], np.float32)
    places, scores = Exact(held).search(np.array([[1, 0], [np.nan, 0]], np.float32), 4)
    assert places[0].tolist()[:2] == [2, 0], "an infinite number by nothing is none"
    assert places[0].tolist()[2:] == [-1, -1]
    assert (places[1] == -1).all()
    assert np.isnan(scores[places == -1]).all()


def test_an_infinite_score_is_the_best(path: str) -> None:
    held = np.array([[1, 2], [np.inf, 1], [3, 1], [-np.inf, 1]], np.float32)
    places, scores = Exact(held).search(np.ones((1, 2), np.float32), 4)
    assert places.tolist() == [[1, 2, 0, 3]]
    assert scores.tolist() == [[np.inf, 4, 3, -np.inf]]


def test_what_is_infinitely_little_is_found_before_what_is_no_number(path: str) -> None:
    held = np.array([[np.nan], [-np.inf], [np.nan], [1], [-np.inf]], np.float32)
    places, _ = Exact(held).search(np.ones((1, 1), np.float32), 5)
    assert places.tolist() == [[3, 1, 4, -1, -1]]


@pytest.mark.parametrize("width", [3, 64, 70])
def test_items_of_unlike_sizes(width: int, path: str) -> None:
    random = np.random.default_rng(0)
    held = random.standard_normal((20_011, width)).astype(np.float32)
    held *= random.uniform(0.01, 10, (len(held), 1)).astype(np.float32)
    asked = random.standard_normal((100, width)).astype(np.float32)
    places, scores = Exact(held).search(asked, 20)
    assert_best(places, held, asked)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_a_column_of_large_numbers_that_most_ask_nothing_of(path: str) -> None:
    """Such as counts beside factors."""
    random = np.random.default_rng(0)
    held = random.standard_normal((4_000, 17)).astype(np.float32)
    held[:, 16] = random.pareto(1.0, 4_000) * 1e4
    asked = random.standard_normal((14, 17)).astype(np.float32)
    asked[:, 16] = np.arange(14) == 5
    places, _ = Exact(held).search(asked, 50)
    for few in (slice(0, 5), slice(5, 6), slice(6, 14)):
        assert_best(places[few], held, asked[few])


def test_queries_that_cannot_be_rounded_find_what_there_is(path: str) -> None:
    random = np.random.default_rng(0)
    held = random.integers(-9, 10, (100, 8)).astype(np.float32)
    asked = random.integers(1, 4, (20, 8)).astype(np.float32)
    asked[3, 2] = np.nan
    asked[7, 0] = np.inf
    asked[13, :2] = -np.inf, np.inf
    asked[19, 5], asked[19, 6] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        due = np.argsort(-(asked @ held.T), axis=1, kind="stable")[:, :30]
        none = np.isnan(np.take_along_axis(asked @ held.T, due, axis=1))
    places, _ = Exact(held).search(asked, 30)
    np.testing.assert_array_equal(places, np.where(none, -1, due))
    assert (places[[3, 19]] == -1).all()
    assert (places[7] >= 0).any()


@pytest.mark.parametrize("items", [1, 15, 16, 17, 31, 32, 33, 65, 1000])
@pytest.mark.parametrize("queries", [1, 4, 5, 8, 9, 13, 37])
def test_any_number_of_items_and_queries(items: int, queries: int, path: str) -> None:
    random = np.random.default_rng(items)
    held, asked = (random.standard_normal((n, 24)).astype(np.float32) for n in (items, queries))
    held[items // 2] *= 1000
    k = min(items, 9)
    places, _ = Exact(held).search(asked, k)
    np.testing.assert_array_equal(places, slow(held, asked, k)[0])


def test_the_least_bad_where_all_products_are_below_nothing(path: str) -> None:
    random = np.random.default_rng(0)
    held = random.uniform(0.5, 2, (3000, 16)).astype(np.float32)
    asked = -random.uniform(0.5, 2, (20, 16)).astype(np.float32)
    assert_best(Exact(held).search(asked, 10)[0], held, asked)


def test_those_of_the_lesser_places_where_many_are_equal(path: str) -> None:
    held = np.ones((5000, 8), np.float32)
    held[4000:] = 0
    places, scores = Exact(held).search(np.ones((13, 8), np.float32), 40)
    assert places.tolist() == [[*range(40)]] * 13
    assert (scores == 8).all()
    zeros, none = Exact(held).search(np.zeros((2, 8), np.float32), 40)
    assert zeros.tolist() == [[*range(40)]] * 2
    assert (none == 0).all()


def test_no_item_that_is_no_number_and_all_others_beside_it(path: str) -> None:
    random = np.random.default_rng(0)
    held = random.standard_normal((700, 12)).astype(np.float32)
    bad = random.permutation(700)[:70]
    held[bad, 3] = np.nan
    asked = random.standard_normal((30, 12)).astype(np.float32)
    places, _ = Exact(held).search(asked, 10)
    assert not np.isin(places, bad).any()
    others = np.delete(np.arange(700), bad)
    np.testing.assert_array_equal(places, others[slow(held[others], asked, 10)[0]])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Exact(np.ones(3, np.float32)), "items of Exact"),
        (lambda: Exact(np.ones((0, 3), np.float32)), "items of Exact"),
        (lambda: Exact(np.ones((3, 2), np.float32), threads=0), "Exact threads: found 0"),
        (lambda: Exact(np.ones((3, 2), np.float32)).search(np.ones((1, 3)), 1), "queries"),
        (lambda: Exact(np.ones((3, 2), np.float32)).search(np.ones((1, 2)), 4), "k: found 4"),
        (lambda: Exact(np.ones((3, 2), np.float32)).search(np.ones((1, 2)), 0), "k: found 0"),
    ],
)
def test_sizes_that_are_not_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
