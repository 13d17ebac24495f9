"""What a learner makes of events: exact vectors, each pair once, no more than there is room for."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_learner import (
    ALPHA,
    L2,
    Made,
    catalogue_of,
    items_of,
    loss,
    raw,
    solved,
    tell,
    users_of,
)

from drivetrain.core.batch import Batch
from drivetrain.core.learner import HAD, ITEMS, NEW, USER, Learner
from drivetrain.core.learner_events import replay
from drivetrain.core.online import Online, Spec
from drivetrain.core.schema import MISSING_INT
from drivetrain.core.tracks import Observed

MADE = Made()
WIDE = Made(users=60, items=40, events=600)


def same(one: Learner, other: Learner) -> None:
    assert one.dump() == other.dump()
    for name, array in one.tensors().items():
        np.testing.assert_array_equal(array, other.tensors()[name])


# -- vectors ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, MADE.items - 1), min_size=1, max_size=12, unique=True))
def test_a_new_user_is_the_exact_least_squares_solution(places: list[int]) -> None:
    learner = MADE.learner()
    others = [(4, 17), (7, 2)]
    tell(learner, [(MADE.users, place) for place in places[:-1]] + others)
    near = items_of(learner)
    had = np.isin(np.arange(len(near)), places)
    tell(learner, [(MADE.users, places[-1])])
    (row,) = users_of(learner, [MADE.users])
    np.testing.assert_allclose(row, solved(near, had), rtol=0, atol=1e-6)


@given(st.lists(st.integers(0, MADE.users + 4), min_size=1, max_size=12, unique=True))
def test_a_new_item_is_the_exact_least_squares_solution(fans: list[int]) -> None:
    learner = MADE.learner()
    tell(learner, [(3, 1), (5, 11)] + [(fan, 90) for fan in fans])
    place = catalogue_of(learner).index("item 90")
    everybody = users_of(learner, range(MADE.users + 5))
    had = np.isin(np.arange(len(everybody)), fans)
    np.testing.assert_allclose(items_of(learner)[place], solved(everybody, had), rtol=0, atol=1e-6)


def test_a_trained_user_moves_from_where_training_left_them_and_others_stay() -> None:
    learner = MADE.learner()
    before = users_of(learner, range(MADE.users))
    fresh = next(i for i in range(MADE.items) if [3, i] not in MADE.trained_pairs.tolist())
    count = (MADE.trained_pairs[:, 0] == 3).sum()
    y = items_of(learner)
    tell(learner, [(3, fresh)])
    after = users_of(learner, range(MADE.users))
    prior = (1 + ALPHA * count / MADE.items) * y.T @ y + L2 * np.eye(MADE.factors)
    system = prior + ALPHA * np.outer(y[fresh], y[fresh])
    due = np.linalg.solve(system, prior @ before[3] + (1 + ALPHA) * y[fresh])
    np.testing.assert_allclose(after[3], due, rtol=0, atol=1e-6)
    others = np.arange(MADE.users) != 3
    assert (after[others] == before[others]).all()
    scores = [vectors @ y[fresh] for vectors in (before[3], after[3])]
    assert scores[1] > scores[0]


def test_what_a_user_forgets_leaves_them_where_they_are() -> None:
    online = Online(capacity=0, recent=3)
    learner = replace(WIDE, online=online).learner()
    user, alpha = WIDE.users, ALPHA
    tell(learner, [(user, item) for item in (0, 2, 4)])
    y, (x,) = items_of(learner), users_of(learner, [user])
    tell(learner, [(user, 6)])
    system = (1 + alpha / WIDE.items) * y.T @ y + L2 * np.eye(WIDE.factors)
    system += alpha * y[[2, 4]].T @ y[[2, 4]]
    due = system @ x + (1 + alpha) * y[6]
    system += alpha * np.outer(y[6], y[6])
    np.testing.assert_allclose(
        users_of(learner, [user])[0], np.linalg.solve(system, due), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("l2", [1.0, 2.0])
def test_one_pass_over_events_comes_near_to_the_loss_of_training(l2: float) -> None:
    trained = Made(users=60, items=40, events=1500, l2=l2)
    pairs = trained.trained_pairs
    had = np.zeros((60, 40))
    had[tuple(pairs.T)] = 1
    best = loss(
        users_of(trained.learner(), range(60)), items_of(trained.learner())[:40], had, l2=l2
    )
    nothing = float(had.sum() * (1 + ALPHA))
    learner = replace(trained, items=2, trained=0, online=Online(capacity=40, guard=1.0)).learner()
    tell(learner, np.random.default_rng(0).permutation(pairs))
    there = [catalogue_of(learner).index(f"item {n}") for n in range(40)]
    found = loss(users_of(learner, range(60)), items_of(learner)[there], had, l2=l2)
    assert (nothing - found) / (nothing - best) > 0.97


def test_events_in_another_order_give_nearly_the_same_scores() -> None:
    pairs = WIDE.pairs(300, 2, users=70)
    scores = []
    for seed in range(4):
        learner = WIDE.learner()
        tell(learner, np.random.default_rng(seed).permutation(pairs))
        scores.append(users_of(learner, range(70)) @ items_of(learner)[: WIDE.items].T)
    before = users_of(WIDE.learner(), range(70)) @ items_of(WIDE.learner())[: WIDE.items].T
    size = np.sqrt((scores[0] ** 2).mean())
    for other in scores[1:]:
        assert np.sqrt(((scores[0] - other) ** 2).mean()) < 0.08 * size
        assert np.corrcoef(scores[0].ravel(), other.ravel())[0, 1] > 0.995
    assert np.sqrt(((scores[0] - before) ** 2).mean()) > 0.3 * size, "and events did change them"


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 26)), max_size=60), st.integers(-30, 15)
)
def test_whatever_is_told_all_that_is_given_is_finite(pairs: Any, power: int) -> None:
    tensors = MADE.tensors()
    factor = np.float32(10.0**power)
    items = tensors[ITEMS] * np.append(np.full(MADE.factors, factor), 1).astype(np.float32)
    learner = MADE.learner(**{ITEMS: items})
    tell(learner, pairs)
    assert np.isfinite(learner.tensors()[ITEMS]).all()
    rows = learner.read(np.array(sorted({raw(pair)[0] for pair in pairs} | {1})))
    assert (np.isfinite(rows).all(axis=1) | np.isnan(rows).all(axis=1)).all()
    assert rows.dtype == np.float32
    assert 0 <= learner.standing.online <= 1
    assert 0 <= learner.standing.frozen <= 1


def test_a_row_without_a_finite_solution_stays_where_it_is() -> None:
    tensors = MADE.tensors()
    items = tensors[ITEMS].copy()
    items[: MADE.items, :-1] = 2.0**40  # so that products are equal to the last bit
    learner = MADE.learner(**{ITEMS: items})
    before = users_of(learner, [2, 99])
    assert tell(learner, [(2, 19), (99, 3), (99, 4)]) == [(1, 0, 0)] * 3
    np.testing.assert_array_equal(users_of(learner, [2, 99]), before)
    assert np.isfinite(items_of(learner)).all()


# -- each pair once --------------------------------------------------------------------------------


def test_a_pair_that_is_known_already_changes_nothing() -> None:
    learner, other = MADE.learner(), MADE.learner()
    assert set(tell(learner, MADE.trained_pairs)) == {(0, 0, 0)}
    same(learner, other)
    pairs = MADE.pairs(120, 5, users=40, items=24)
    tell(learner, pairs)
    before = learner.dump()
    assert set(tell(learner, pairs)) == {(0, 0, 0)}
    assert learner.dump() == before
    assert learner.changed() is not None
    for pair in pairs:
        told = other.tell(raw(pair))
        assert other.tell(raw(pair)) == (0, 0, 0)
        assert told in ((1, 0, 0), (0, 0, 0))
    same(learner, other)


def test_a_pair_that_one_side_forgot_is_known_as_long_as_the_other_remembers() -> None:
    learner = replace(WIDE, online=Online(recent=2)).learner()
    user = WIDE.users
    assert set(tell(learner, [(user, 0), (user, 2), (user, 4)])) == {(1, 0, 0)}
    assert tell(learner, [(user, 0)]) == [(0, 0, 0)]
    assert learner.had(user * 10 + 1).tolist() == [2, 4]
    tell(learner, [(user + n, 0) for n in range(1, 3)])
    assert tell(learner, [(user, 0)]) == [(1, 0, 0)]


@pytest.mark.parametrize(
    "row",
    [(None, "item 1"), (MISSING_INT, "item 1"), (float("nan"), "item 1"), (11, None), (11, "")],
)
def test_an_event_without_a_user_or_an_item_is_missing(row: Any) -> None:
    learner = MADE.learner()
    before = learner.dump()
    assert learner.tell(row) == (0, 0, 1)
    assert learner.missing == 1
    assert learner.figures()["missing"] == 1
    learner.missing = 0
    assert learner.dump() == before


@pytest.mark.parametrize(
    "row", [("u", "item 1"), (1.5, "item 1"), (11, 3), (True, "item 1"), (2**63, "item 1")]
)
def test_an_event_of_other_types_is_refused_and_nothing_learnt(row: Any) -> None:
    learner = MADE.learner()
    before = learner.dump()
    with pytest.raises(TypeError, match=r"column 'wh(o|at)': found"):
        learner.tell(row)
    assert learner.dump() == before
    with pytest.raises(ValueError, match="found 1, allowed: values of who, what"):
        learner.tell((11,))


def test_a_full_catalogue_refuses_new_items_and_goes_on_with_the_others() -> None:
    learner = MADE.learner()
    room = MADE.online.capacity
    tell(learner, [(2, 100 + n) for n in range(room)])
    assert learner.figures()["free_items"] == 0
    before, tensors = learner.dump(), {k: v.copy() for k, v in learner.tensors().items()}
    learner.changed()
    assert tell(learner, [(2, 300), (77, 301), (2, 300)]) == [(0, 0, 0)] * 3
    assert learner.refused == 3
    assert not learner.changed()
    assert learner.ask(771) is None, "nobody was told of"
    for name, array in learner.tensors().items():
        np.testing.assert_array_equal(array, tensors[name])
    learner.refused = 0
    assert learner.dump() == before
    assert tell(learner, [(77, 100), (77, 4)]) == [(1, 0, 0)] * 2
    assert catalogue_of(learner)[MADE.items :] == [
        *(f"item {100 + n}" for n in range(room)),
        "",
        "",
    ]


def test_a_flood_of_one_user_moves_others_little() -> None:
    learner = WIDE.learner()
    users, items = users_of(learner, range(60)), items_of(learner)[:40]
    told = tell(learner, [(3, item) for item in range(40)] * 25)
    assert sum(kept for kept, _, _ in told) == 40 - (WIDE.trained_pairs[:, 0] == 3).sum()
    others = np.arange(60) != 3
    assert (users_of(learner, range(60))[others] == users[others]).all()
    moved = np.linalg.norm(items_of(learner)[:40] - items, axis=1)
    assert (moved < 0.3 * np.linalg.norm(items, axis=1)).all(), "as far as one of their fans goes"
    before, after = (users[others] @ vectors.T for vectors in (items, items_of(learner)[:40]))
    assert np.sqrt(((after - before) ** 2).mean() / (before**2).mean()) < 0.12


# -- answers ---------------------------------------------------------------------------------------


def test_rows_of_users_say_who_they_are_and_what_they_had_since() -> None:
    learner = MADE.learner()
    tell(learner, [(99, 3), (99, 500), (2, 500)])
    rows = learner.rows(np.array([991, 21, 31, MISSING_INT]))
    beyond = MADE.items + MADE.online.capacity
    assert rows[USER].dtype == np.float32
    assert np.isnan(rows[USER]).all(axis=1).tolist() == [False, False, True, True]
    assert rows[USER][:2, -1].tolist() == [0, 0]
    assert rows[HAD][:, :3].tolist() == [
        [3, MADE.items, beyond],
        [MADE.items, beyond, beyond],
        [beyond] * 3,
        [beyond] * 3,
    ]
    assert learner.ask(31) is None
    assert learner.had(31) is None
    np.testing.assert_array_equal(learner.ask(991), rows[USER][0])


def test_what_changed_is_told_once() -> None:
    learner = MADE.learner()
    assert not learner.changed()
    tell(learner, [(99, 3), (99, 500)])
    copies = {name: array.copy() for name, array in MADE.learner().tensors().items()}
    changed = learner.changed()
    assert {name: rows.tolist() for name, rows in changed.items()} == {
        ITEMS: [3, MADE.items],
        NEW: [0],
    }
    for name, rows in changed.items():
        copies[name][rows] = learner.tensors()[name][rows]
        np.testing.assert_array_equal(copies[name], learner.tensors()[name])
    assert not learner.changed()


def test_an_items_last_number_is_how_often_it_was_had() -> None:
    learner = MADE.learner()
    before = learner.tensors()[ITEMS][:, -1].copy()
    tell(learner, [(99, 3), (98, 3), (99, 500)])
    added = learner.tensors()[ITEMS][:, -1] - before
    assert added[3] == 2
    assert added[MADE.items] == 1
    assert added.sum() == 3


def test_a_batch_is_learnt_row_by_row_and_a_table_in_the_order_of_its_times() -> None:
    pairs = MADE.pairs(80, 4, users=40)
    one, other, third = MADE.learner(), MADE.learner(), MADE.learner()
    told = tell(one, pairs)
    columns = {
        "who": pairs[:, 0] * 10 + 1,
        "what": np.array([f"item {n}" for n in pairs[:, 1]], object),
        "at": np.arange(len(pairs)),
        "price": np.zeros(len(pairs)),
    }
    kept = sum(row[0] for row in told)
    assert other.observe(Batch(columns)) == Observed(kept, 0, 0)
    same(one, other)
    mixed = Batch(columns).take(np.random.default_rng(0).permutation(len(pairs)))
    assert replay(third, [mixed.slice(0, 30), mixed.slice(30, 99)], "at") == Observed(kept, 0, 0)
    same(one, third)
    assert other.observe(Batch({"who": columns["who"]})) == Observed()
    assert other.observe(Batch(columns).slice(0, 0)) == Observed()
    same(one, other)


def test_a_graph_without_a_learner_has_none_and_one_that_lacks_a_part_says_which() -> None:
    from onnx import load_model_from_string

    model = load_model_from_string(MADE.model())
    left = [t for t in model.graph.initializer if not t.name.startswith("learner/")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)
    assert Learner.of(model.SerializeToString()) is None
    model = load_model_from_string(MADE.model())
    del model.graph.input[0]
    with pytest.raises(ValueError, match=f"found 'no {USER}', allowed: all of its tensors"):
        Learner.of(model.SerializeToString())


def test_a_declaration_goes_into_the_graph_and_comes_back() -> None:
    learner = MADE.learner()
    assert Spec.from_json(learner.spec.to_json()) == learner.spec
    assert learner.columns == ("who", "what")
    newer = learner.spec.to_json().replace('"version": 1', '"version": 2')
    with pytest.raises(ValueError, match="allowed: version 1"):
        Spec.from_json(newer)
    for changes in ({"recent": 0}, {"capacity": -1}, {"guard": 0.0}, {"evidence": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=rf"Online\.{next(iter(changes))}: found"):
            Online(**changes)
