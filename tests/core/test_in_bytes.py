"""Items in 8 bits: what rounding may take is known, and copies are kept up with by rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core import in_bytes
from drivetrain.core.in_bytes import LIMITS, PANELS, SCALES, InBytes

needs_bytes = pytest.mark.skipif(
    not in_bytes.there(),
    reason="NOT TESTED: this processor multiplies no bytes, or nothing was compiled here",
)


def made(items: int, width: int, seed: int = 0) -> np.ndarray:
    """Items of unlike sizes, with a column of large numbers."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((items, width)) * random.lognormal(0, 1, (items, 1))
    rows[:, -1] *= 100
    return rows.astype(np.float32)


@given(st.integers(1, 90), st.integers(1, 21), st.integers(0, 50))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_score_in_8_bits_is_no_further_off_than_is_said(
    items: int, width: int, seed: int
) -> None:
    """As the search has it: queries are rounded like items, in the items' own dimensions."""
    rows, queries = made(items, width, seed), made(5, width, seed + 1)
    index = InBytes(rows)
    wide = (queries * index.columns).astype(float)
    steps = np.abs(wide).max(axis=1, keepdims=True) / 127
    asked = np.rint(wide / steps) * steps
    panels = index.arrays[PANELS].transpose(0, 1, 3, 2, 4).astype(float) - 128
    held = panels.reshape(-1, panels.shape[3] * 4)[:items, :width]
    held *= index.arrays[SCALES].reshape(-1, 1)[:items]
    off = np.abs(asked @ held.T - queries.astype(float) @ rows[index.order[:items]].astype(float).T)
    limits = index.arrays[LIMITS][np.arange(items) // 32, 1:].astype(float)
    errors = np.stack([np.linalg.norm(each, axis=1) for each in (wide, wide - asked)], axis=1)
    assert (off <= errors @ limits.T).all()


def found(index: InBytes, queries: np.ndarray, k: int, **more) -> tuple[np.ndarray, np.ndarray]:
    scores = np.full((len(queries), k), -np.inf, np.float32)
    places = np.full((len(queries), k), -1, np.int32)
    index.search(queries, k, scores, places, **more)
    return places, scores


def due(rows: np.ndarray, queries: np.ndarray, k: int) -> list[list[int]]:
    scores = queries.astype(float) @ rows.astype(float).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k].tolist()


@needs_bytes
def test_items_are_found_where_they_were_placed_last() -> None:
    rows, queries = made(200, 9), made(13, 9, 1)
    index = InBytes(rows, 150)
    random = np.random.default_rng(2)
    copy = {name: array.copy() for name, array in index.arrays.items()}
    held, taken = rows.copy(), 150
    for turn in range(30):
        places = np.unique(random.integers(0, taken, 5))
        if turn % 3 == 0 and taken < 200:
            places, taken = np.append(places, taken), taken + 1
        rows[places] = made(200, 9, turn + 3)[places] * 2
        for name, changed in index.place(places).items():
            copy[name][changed] = index.arrays[name][changed]
        best, _ = found(index, queries, 20, items=taken)
        assert best.tolist() == due(rows[:taken], queries, 20)
        held[:] = rows
    for name, array in copy.items():
        np.testing.assert_array_equal(array, index.arrays[name])
    rows[:] = 0
    best, _ = found(index, queries, 20, items=taken, arrays=copy, rows=held)
    assert best.tolist() == due(held[:taken], queries, 20), "a copy is of its own moment"


@needs_bytes
def test_what_is_taken_away_is_found_no_more() -> None:
    rows, queries = made(100, 6), made(4, 6, 1)
    index = InBytes(rows)
    index.place(np.arange(60, 100), 60)
    assert found(index, queries, 10, items=60)[0].tolist() == due(rows[:60], queries, 10)
    zeros, _ = found(index, np.zeros((1, 6), np.float32), 60, items=60)
    assert zeros.tolist() == [[*range(60)]]


@needs_bytes
@pytest.mark.parametrize("queries", [1, 5, 12, 13, 40])
def test_what_each_is_not_to_find_it_does_not(queries: int) -> None:
    rows, asked = made(300, 8), made(queries, 8, 1)
    asked[0] = 0  # all scores are equal: looked for in float32
    index = InBytes(rows)
    random = np.random.default_rng(3)
    never = [
        np.sort(random.permutation(300)[: number % 5 * 70]).astype(np.int32)
        for number in range(queries)
    ]
    best, scores = found(index, asked, 30, never=never)
    for row, out in enumerate(never):
        left = np.delete(np.arange(300), out)
        expected = left[due(rows[left], asked[row : row + 1], 30)[0]].tolist()
        assert best[row].tolist() == expected + [-1] * (30 - len(expected))
        assert np.isinf(scores[row, len(expected) :]).all()


@needs_bytes
def test_lists_that_lie_elsewhere_than_their_starts_say_are_refused() -> None:
    rows = made(40, 4)
    index = InBytes(rows)
    scores, places = np.empty((2, 3), np.float32), np.empty((2, 3), np.int32)
    given = (*(index.arrays[n] for n in (PANELS, SCALES, LIMITS)), index.order, rows)
    for starts in ([0, 1, 3], [0, 2, 1], [-1, 0, 0]):
        with pytest.raises(ValueError, match="starts"):
            in_bytes.compiled.in_bytes(
                *(*given, index.columns, rows[:2], np.array(starts), np.zeros(2, np.int32)),
                *(scores, places, len(index.arrays[LIMITS]), 40, 4, 2, 3),
            )
