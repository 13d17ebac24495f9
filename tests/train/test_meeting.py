"""What was had together, beside the plain products of matrices."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.train.recall import meeting
from drivetrain.train.recall.interactions import Sparse
from drivetrain.train.recall.meeting import evened, gram, largest, nearest

compiled = meeting.compiled
PATHS = [None] if compiled is None else [None, compiled]


def sparse(dense: np.ndarray) -> Sparse:
    rows, columns = np.nonzero(dense)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    weights = dense[rows, columns].astype(np.float32)
    return Sparse(starts, columns.astype(np.int32), weights, dense.shape[1])


def slow(dense: np.ndarray, most: int, shrink: float) -> list[list[tuple[int, float]]]:
    """The neighbours as the definition has them, item by item."""
    found: list[list[tuple[int, float]]] = []
    for i in range(dense.shape[1]):
        alike: list[tuple[float, int]] = []
        for j in range(dense.shape[1]):
            dot = float(dense[:, i] @ dense[:, j])
            if i != j and dot > 0:
                norms = np.linalg.norm(dense[:, i]) * np.linalg.norm(dense[:, j])
                alike.append((-np.float32(dot / (norms + shrink)), j))
        found.append([(j, -value) for value, j in sorted(alike)[:most]])
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda p: "compiled" if p else "numpy")
def test_an_item_whose_weights_are_all_zero_is_like_none(
    path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "compiled", path)
    weights = np.array([0, 1, 2, 0, 2, 1], np.float32)
    columns = np.array([0, 1, 2, 0, 1, 2], np.int32)
    numbers, values = nearest(Sparse(np.array([0, 3, 6]), columns, weights, 3), 2, 0.0)
    assert numbers.tolist() == [[3, 3], [2, 3], [1, 3]]
    np.testing.assert_allclose(values, [[0, 0], [0.8, 0], [0.8, 0]], rtol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: "compiled" if p else "numpy")
@given(data=st.data())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_neighbours_are_those_of_the_definition(path, data) -> None:
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 9)))
    # whole weights: sums are exact, so that equals are equal on both paths
    dense = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(0, 2), min_size=shape[1], max_size=shape[1]),
                min_size=shape[0],
                max_size=shape[0],
            )
        ),
        np.float64,
    )
    most, shrink = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([0.0, 0.5, 10.0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meeting, "compiled", path)
        patch.setattr(meeting, "PAIRS", 7)
        numbers, values = nearest(sparse(dense), most, shrink)
        products = gram(sparse(dense))
    np.testing.assert_array_equal(products, dense.T @ dense)
    due = slow(dense, most, shrink)
    for row, (number, value) in enumerate(zip(numbers, values, strict=True)):
        found = [(j, v) for j, v in zip(number.tolist(), value, strict=True) if j < shape[1]]
        assert len(found) == len(due[row])
        np.testing.assert_allclose([v for _, v in found], [v for _, v in due[row]], rtol=1e-6)
        assert (value[len(found) :] == 0).all()
        assert len({j for j, _ in found} | {row}) == len(found) + 1, "each once, and not itself"
    assert numbers.shape == values.shape == (shape[1], most)


def test_both_paths_agree_to_the_order_of_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled is None:
        pytest.skip("NOT TESTED: the compiled part was not built here")
    random = np.random.default_rng(0)
    had = sparse((random.random((200, 60)) < random.random(60) * 0.3).astype(float))
    one = nearest(had, 10, 3.0)
    monkeypatch.setattr(meeting, "compiled", None)
    monkeypatch.setattr(meeting, "PAIRS", 900)
    other = nearest(had, 10, 3.0)
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    equals = (np.diff(one[1], axis=1) == 0) & (one[1][:, 1:] > 0)
    assert equals.any(), "some are equal"
    assert (np.diff(one[0], axis=1)[equals] > 0).all(), "of equals the lesser number is first"


def test_the_largest_of_each_row_come_first_and_nothing_below_zero() -> None:
    weights = np.array([[0, 0.5, -1, 0.5], [2, 0, 3, 1], [0, 0, 0, 0], [-1, -2, 0, 0]], np.float32)
    numbers, values = largest(weights, 3)
    assert numbers.tolist() == [[1, 3, 4], [2, 0, 3], [4, 4, 4], [4, 4, 4]]
    assert values.tolist() == [[0.5, 0.5, 0], [3, 2, 1], [0, 0, 0], [0, 0, 0]]


def test_what_is_no_matrix_is_refused() -> None:
    if compiled is None:
        pytest.skip("NOT TESTED: the compiled part was not built here")
    starts, columns = np.array([0, 1], np.int64), np.array([5], np.int32)
    weights, into = np.ones(1, np.float32), np.zeros((2, 2), np.float32)
    turned = np.array([0, 1, 1], np.int64)
    with pytest.raises(ValueError, match="no compressed sparse matrix"):
        compiled.gram(
            *(starts, columns, weights, turned, np.zeros(1, np.int32), weights, 1, 2, 0, 2, into)
        )


def test_evened_rows_count_by_a_power_of_their_length_and_all_as_much_as_before() -> None:
    dense = (np.random.default_rng(2).random((20, 8)) < np.linspace(0, 1, 20)[:, None]).astype(
        float
    )
    had = sparse(dense)
    assert evened(had, 0) is had
    for even in (0.5, 1.0):
        found = evened(had, even)
        squares = np.add.reduceat(
            found.weights.astype(float) ** 2, found.starts[:-1][had.lengths > 0]
        )
        due = had.lengths[had.lengths > 0] ** (1 - even)
        np.testing.assert_allclose(squares, due / due.sum() * len(had.columns), rtol=1e-5)
        np.testing.assert_array_equal(found.columns, had.columns)
