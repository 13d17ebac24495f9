"""Alternating least squares: the compiled loops and numpy solve the same systems, exactly so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drivetrain.core.online import Online
from drivetrain.core.seams import Run
from drivetrain.train.als import ALS
from drivetrain.train.recall import least_squares
from drivetrain.train.recall.interactions import Sparse
from drivetrain.train.recall.least_squares import Factors, alternate, improve, loss


def made(users: int = 120, items: int = 70, seed: int = 0) -> tuple[Sparse, np.ndarray]:
    """Made interactions with weights, an empty row and a full one; also as a dense matrix."""
    random = np.random.default_rng(seed)
    dense = np.where(random.random((users, items)) < 0.15, random.random((users, items)) * 5, 0)
    dense[0] = 0
    dense[3] = 2
    rows, columns = np.nonzero(dense)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=users))])
    weights = dense[rows, columns].astype(np.float32)
    return Sparse(starts, columns.astype(np.int32), weights, items), dense


def solved(others: np.ndarray, dense: np.ndarray, l2: float) -> np.ndarray:
    """The systems of the paper, one after another, in float64."""
    base = others.T @ others + l2 * np.eye(others.shape[1])
    return np.array(
        [
            np.linalg.solve(base + (others.T * row) @ others, others.T @ ((1 + row) * (row > 0)))
            for row in dense
        ]
    )


@pytest.fixture(params=["compiled", "numpy"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(least_squares, "compiled", None)
        monkeypatch.setattr(least_squares, "ENTRIES", 100)
    elif least_squares.compiled is None:
        pytest.skip("NOT TESTED: the compiled part was not built here")
    return request.param


@pytest.mark.parametrize("factors", [3, 16, 33, 64, 128, 130])
def test_enough_steps_solve_every_row_exactly(factors: int, path: str) -> None:
    had, dense = made()
    random = np.random.default_rng(1)
    users, items = (Factors.drawn(n, factors, random) for n in (had.rows, had.wide))
    improve(items, users, had.turned, l2=2.0, steps=2)
    due = solved(items.factors.astype(np.float64), dense, 2.0)
    improve(users, items, had, l2=2.0, steps=40)
    np.testing.assert_allclose(users.factors, due, atol=1e-5)
    assert not users.factors[0].any(), "who had nothing wants nothing"
    assert np.abs(due).max() > 0.1


@pytest.mark.parametrize("factors", [5, 64])
def test_the_compiled_loops_give_what_numpy_does(
    factors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if least_squares.compiled is None:
        pytest.skip("NOT TESTED: the compiled part was not built here")
    had, _ = made(seed=2)
    found: list[np.ndarray] = []
    for compiled in (least_squares.compiled, None):
        monkeypatch.setattr(least_squares, "compiled", compiled)
        random = np.random.default_rng(3)
        users, items = (Factors.drawn(n, factors, random) for n in (had.rows, had.wide))
        for _ in range(3):
            improve(users, items, had, l2=1.0, steps=3)
            improve(items, users, had.turned, l2=1.0, steps=3)
        found.append(np.concatenate([users.factors, items.factors]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_rows_longer_than_the_desk_are_taken_piece_by_piece(path: str) -> None:
    random = np.random.default_rng(0)
    dense = np.zeros((3, 2500))
    dense[1] = random.random(2500)
    dense[2, ::7] = 1
    rows, columns = np.nonzero(dense)
    starts = np.array([0, 0, 2500, len(rows)])
    had = Sparse(starts, columns.astype(np.int32), dense[rows, columns].astype(np.float32), 2500)
    users, items = (Factors.drawn(n, 8, random) for n in (3, 2500))
    due = solved(items.factors.astype(np.float64), dense, 5.0)
    improve(users, items, had, l2=5.0, steps=30)
    np.testing.assert_allclose(users.factors, due, atol=1e-4)


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    from drivetrain.train.recall import sharing

    had, _ = made()
    found: list[bytes] = []
    for threads in (1, 3):
        monkeypatch.setattr(sharing, "cores", lambda threads=threads: threads)
        random = np.random.default_rng(3)
        users, items = (Factors.drawn(n, 16, random) for n in (had.rows, had.wide))
        improve(users, items, had, l2=1.0, steps=3)
        found.append(users.held.tobytes())
    assert found[0] == found[1]


def test_the_loss_is_that_of_the_paper_and_falls() -> None:
    had, dense = made()
    random = np.random.default_rng(1)
    users, items = (Factors.drawn(n, 8, random) for n in (had.rows, had.wide))
    before = np.inf
    for _ in range(4):
        improve(users, items, had, l2=1.0, steps=3)
        improve(items, users, had.turned, l2=1.0, steps=3)
        x, y = users.factors.astype(np.float64), items.factors.astype(np.float64)
        total = ((1 + dense) * ((dense > 0) - x @ y.T) ** 2).sum() + (x**2).sum() + (y**2).sum()
        found = loss(users, items, had, l2=1.0)
        assert found == pytest.approx(total / (1 + dense).sum(), rel=1e-5)
        assert found < before
        before = found


@pytest.mark.parametrize("relaxation", [0.3, 1.6, 1.99])
def test_a_half_step_that_goes_beyond_the_solution_still_lowers_the_loss(
    relaxation: float, path: str
) -> None:
    had, dense = made()
    random = np.random.default_rng(1)
    users, items = (Factors.drawn(n, 8, random) for n in (had.rows, had.wide))
    for _ in range(3):
        for mine, others, rows in ((users, items, had), (items, users, had.turned)):
            before = loss(users, items, had, l2=1.0)
            start = mine.factors
            improve(mine, others, rows, l2=1.0, steps=40, relaxation=relaxation)
            assert loss(users, items, had, l2=1.0) < before
            due = solved(
                others.factors.astype(np.float64), dense.T if mine is items else dense, 1.0
            )
            np.testing.assert_allclose(mine.factors, start + relaxation * (due - start), atol=1e-4)


def test_turns_need_fewer_iterations_than_plain_ones_and_end_in_a_solution(path: str) -> None:
    had, _ = made()
    found: list[float] = []
    for plain in (True, False):
        random = np.random.default_rng(1)
        users, items = (Factors.drawn(n, 8, random) for n in (had.rows, had.wide))
        if plain:
            for _ in range(15):
                improve(users, items, had, l2=1.0, steps=3)
                improve(items, users, had.turned, l2=1.0, steps=3)
        else:
            turns = alternate(users, items, had, l2=1.0, steps=3, iterations=10)
            assert list(turns) == [*range(1, 11)]
            assert not users.factors[0].any(), "who had nothing wants nothing"
        found.append(loss(users, items, had, l2=1.0))
    assert found[1] < found[0]


def test_what_is_no_matrix_is_refused_and_not_read() -> None:
    if least_squares.compiled is None:
        pytest.skip("NOT TESTED: the compiled part was not built here")
    solve = least_squares.compiled.solve
    starts, columns = np.array([0, 2], np.int64), np.array([0, 1], np.int32)
    weights, others = np.ones(2, np.float32), np.ones((2, 16), np.float32)
    answer = np.zeros((1, 16), np.float32)
    solve(starts, columns, weights, others, answer, 16, 0, 1, 1, 1.0)
    assert answer.any()
    for wrong in (
        (starts, np.array([0, 2], np.int32), weights, others, answer, 16, 0, 1, 1, 1.0),
        (starts, np.array([0, -1], np.int32), weights, others, answer, 16, 0, 1, 1, 1.0),
        (np.array([0, 3], np.int64), columns, weights, others, answer, 16, 0, 1, 1, 1.0),
        (np.array([2, 0], np.int64), columns, weights, others, answer, 16, 0, 1, 1, 1.0),
        (starts, columns, weights[:1], others, answer, 16, 0, 1, 1, 1.0),
        (starts, columns, weights, others, answer[:0], 16, 0, 1, 1, 1.0),
        (starts, columns, weights, others, answer, 16, 0, 2, 1, 1.0),
        (starts, columns, weights, others, answer, 15, 0, 1, 1, 1.0),
    ):
        with pytest.raises(ValueError, match=r"allowed|matrix|width"):
            solve(*wrong)


def test_users_that_count_evenly_have_confidences_by_a_power_of_their_length() -> None:
    had, dense = made()
    even = ALS(target="item", factors=6, iterations=2, alpha=2.0, even=0.5)
    counts = np.maximum((dense > 0).sum(axis=1), 1) ** -0.5
    counts *= (dense > 0).sum() / (counts * (dense > 0).sum(axis=1)).sum()
    weights = had.weights * np.repeat(counts, had.lengths)
    scaled = Sparse(had.starts, had.columns, weights.astype(np.float32), had.wide)
    run = Run(directory=Path())
    for one, other in zip(
        even.factorized(had, run), replace(even, even=0.0).factorized(scaled, run), strict=True
    ):
        np.testing.assert_allclose(one.factors, other.factors, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"ALS\.even: found -1"):
        replace(even, even=-1)
    with pytest.raises(ValueError, match=r"ALS\.even: found 0\.5, allowed: 0 where online"):
        replace(even, online=Online())
