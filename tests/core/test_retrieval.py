"""Exact search beside a plain product of matrices, on every path that there is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core import retrieval
from drivetrain.core.retrieval import Exact

compiled = retrieval.compiled
PATHS = ["numpy"] if compiled is None else ["numpy", "compiled"]
needs_bytes = pytest.mark.skipif(
    compiled is None or not compiled.bytes(),
    reason="NOT TESTED: this processor multiplies no bytes, or nothing was compiled here",
)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(retrieval, "compiled", None)
    return request.param


def slow(items: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ items.T.astype(np.float64)
    places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return places, np.take_along_axis(scores, places, axis=1)


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
            patch.setattr(retrieval, "compiled", compiled if path == "compiled" else None)
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
    due, best = slow(held, asked, k)
    np.testing.assert_allclose(scores, best, atol=1e-4)
    assert (places == due).mean() > 0.99
    assert all(len(set(row)) == k for row in places.tolist())
    own = np.take_along_axis(asked @ held.T, places, axis=1)
    np.testing.assert_allclose(scores, own, atol=1e-4)


def test_what_is_no_number_is_not_found(path: str) -> None:
    held = np.array([[1, 0], [np.nan, 1], [3, 0], [2, np.inf]], np.float32)
    places, scores = Exact(held).search(np.array([[1, 0], [np.nan, 0]], np.float32), 4)
    assert places[0].tolist()[:2] == [2, 0], "an infinite number by nothing is none"
    assert places[0].tolist()[2:] == [-1, -1]
    assert (places[1] == -1).all()
    assert np.isnan(scores[places == -1]).all()


@needs_bytes
@pytest.mark.parametrize("width", [3, 64, 70])
def test_rounded_candidates_are_scored_again_and_hardly_one_is_missed(width: int) -> None:
    random = np.random.default_rng(0)
    held = random.standard_normal((20_011, width)).astype(np.float32)
    held *= random.uniform(0.01, 10, (len(held), 1)).astype(np.float32)
    asked = random.standard_normal((100, width)).astype(np.float32)
    places, scores = Exact(held, candidates=2).search(asked, 20)
    due, _ = slow(held, asked, 20)
    recall = np.mean(
        [len({*a} & {*b}) / 20 for a, b in zip(places.tolist(), due.tolist(), strict=True)]
    )
    assert recall > 0.999
    own = np.take_along_axis(asked @ held.T, places, axis=1)
    np.testing.assert_allclose(scores, own, rtol=1e-4, atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_what_is_infinitely_little_is_found_before_what_is_no_number(path: str) -> None:
    held = np.array([[np.nan], [-np.inf], [np.nan], [1], [-np.inf]], np.float32)
    places, _ = Exact(held).search(np.ones((1, 1), np.float32), 5)
    assert places.tolist() == [[3, 1, 4, -1, -1]]


@needs_bytes
def test_queries_that_cannot_be_rounded_find_what_an_exact_search_finds() -> None:
    random = np.random.default_rng(0)
    held = random.integers(-9, 10, (100, 8)).astype(np.float32)
    asked = random.integers(1, 4, (20, 8)).astype(np.float32)
    asked[3, 2] = np.nan
    asked[7, 0] = np.inf
    asked[13, :2] = -np.inf, np.inf
    asked[19, 5], asked[19, 6] = np.inf, np.nan
    due, best = Exact(held).search(asked, 60)
    places, scores = Exact(held, candidates=50).search(asked, 60)
    np.testing.assert_array_equal(places, due)
    np.testing.assert_array_equal(scores, best)
    assert (places[[3, 19]] == -1).all()
    assert (places[7] >= 0).any()
    few, _ = Exact(held, candidates=1).search(asked, 5)
    np.testing.assert_array_equal(few[[3, 7, 13, 19]], due[[3, 7, 13, 19], :5])


@needs_bytes
def test_as_many_candidates_as_items_are_exact() -> None:
    random = np.random.default_rng(0)
    held = random.integers(-90, 90, (100, 20)).astype(np.float32)
    held[7] = 0
    asked = random.integers(-3, 4, (13, 20)).astype(np.float32)
    places, scores = Exact(held, candidates=50).search(asked, 30)
    due, best = slow(held, asked, 30)
    np.testing.assert_array_equal(places, due)
    np.testing.assert_array_equal(scores, best)


def recalled(places: np.ndarray, due: np.ndarray) -> float:
    return float((due[:, :, None] == places[:, None, :]).any(axis=2).mean())


@needs_bytes
@pytest.mark.parametrize("items", [1, 15, 16, 17, 31, 32, 33, 65, 1000])
def test_bytes_search_panels_of_any_number_of_items(items: int) -> None:
    random = np.random.default_rng(items)
    held, asked = (random.standard_normal((n, 24)).astype(np.float32) for n in (items, 37))
    held[items // 2] *= 1000
    k = min(items, 9)
    places, scores = Exact(held, candidates=2).search(asked, k)
    due, best = slow(held, asked, k)
    assert recalled(places, due) > 0.99
    np.testing.assert_allclose(np.sort(scores), np.sort(best), rtol=2e-2, atol=0.3)


@needs_bytes
def test_bytes_find_the_least_bad_where_all_products_are_below_nothing() -> None:
    random = np.random.default_rng(0)
    held = random.uniform(0.5, 2, (3000, 16)).astype(np.float32)
    asked = -random.uniform(0.5, 2, (20, 16)).astype(np.float32)
    assert recalled(Exact(held, candidates=3).search(asked, 10)[0], slow(held, asked, 10)[0]) > 0.99


@needs_bytes
def test_bytes_find_as_many_as_are_wanted_where_many_are_equal() -> None:
    """More equal scores than there is room for: those of the lesser places, each once."""
    held = np.ones((5000, 8), np.float32)
    held[4000:] = 0
    places, scores = Exact(held, candidates=1.5).search(np.ones((13, 8), np.float32), 40)
    assert all(len(set(row)) == 40 and max(row) < 4000 for row in places.tolist())
    assert (scores == 8).all()
    zeros, none = Exact(held, candidates=1.5).search(np.zeros((2, 8), np.float32), 40)
    assert all(len(set(row)) == 40 for row in zeros.tolist())
    assert (none == 0).all()


@needs_bytes
def test_bytes_find_no_item_that_is_no_number_and_all_others_beside_it() -> None:
    random = np.random.default_rng(0)
    held = random.standard_normal((700, 12)).astype(np.float32)
    bad = random.permutation(700)[:70]
    held[bad, 3] = np.where(np.arange(70) % 2, np.nan, np.inf)
    asked = random.standard_normal((30, 12)).astype(np.float32)
    places, _ = Exact(held, candidates=4).search(asked, 10)
    assert not np.isin(places, bad).any()
    others = np.delete(np.arange(700), bad)
    due, _ = slow(held[others], asked, 10)
    assert recalled(places, others[due]) > 0.99


def test_without_bytes_candidates_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    held, asked = (random.standard_normal((n, 8)).astype(np.float32) for n in (50, 3))
    monkeypatch.setattr(retrieval, "compiled", None)
    one, other = Exact(held), Exact(held, candidates=2)
    np.testing.assert_array_equal(one.search(asked, 5)[0], other.search(asked, 5)[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Exact(np.ones(3, np.float32)), "items of Exact"),
        (lambda: Exact(np.ones((0, 3), np.float32)), "items of Exact"),
        (lambda: Exact(np.ones((3, 2), np.float32), threads=0), "Exact threads: found 0"),
        (lambda: Exact(np.ones((3, 2), np.float32), candidates=0.5), "Exact candidates: found 0.5"),
        (lambda: Exact(np.ones((3, 2), np.float32)).search(np.ones((1, 3)), 1), "queries"),
        (lambda: Exact(np.ones((3, 2), np.float32)).search(np.ones((1, 2)), 4), "k: found 4"),
        (lambda: Exact(np.ones((3, 2), np.float32)).search(np.ones((1, 2)), 0), "k: found 0"),
    ],
)
def test_sizes_that_are_not_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
