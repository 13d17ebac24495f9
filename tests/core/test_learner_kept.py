"""A learner's state: written and read back, replayed, and given up where it is worse."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_learner import Made, catalogue_of, items_of, raw, tell

from drivetrain.core.learner import HAD, ITEMS, NEW, USER, Learner
from drivetrain.core.online import Online
from drivetrain.core.standing import Standing, auc, drawn

MADE = Made(online=Online(capacity=8, recent=5, evidence=50, guard=1.0))
PAIRS = st.lists(st.tuples(st.integers(0, 36), st.integers(0, 30)), max_size=80)


@given(PAIRS, st.integers(0, 80))
def test_a_replay_gives_the_same_bytes_and_so_does_going_on_from_a_dump(
    pairs: Any, cut: int
) -> None:
    one, other, half = MADE.learner(), MADE.learner(), MADE.learner()
    tell(one, pairs)
    tell(other, pairs)
    tell(half, pairs[:cut])
    half = Learner.load(half.dump(), MADE.model())
    tell(half, pairs[cut:])
    assert one.dump() == other.dump() == half.dump()
    users = np.arange(40) * 10 + 1
    for name, rows in one.rows(users).items():
        np.testing.assert_array_equal(rows, half.rows(users)[name])
    for name, array in one.tensors().items():
        np.testing.assert_array_equal(array, half.tensors()[name])
    assert one.figures() == half.figures()


def test_what_was_loaded_counts_as_changed() -> None:
    learner = MADE.learner()
    tell(learner, [(99, 3), (99, 500)])
    found = Learner.load(learner.dump(), MADE.model())
    changed = {name: rows.tolist() for name, rows in found.changed().items()}
    assert changed == {ITEMS: [3, MADE.items], NEW: [0]}


@pytest.mark.parametrize("many", [300, 1000])
def test_there_is_room_for_any_number_of_new_users(many: int) -> None:
    learner = MADE.learner()
    pairs = [(100 + n, (n * 7) % MADE.items) for n in range(many)]
    tell(learner, pairs)
    assert learner.figures()["new_users"] == many
    assert learner.keys == many + MADE.items
    before = learner.ask(1001)
    assert before is not None
    found = Learner.load(learner.dump(), MADE.model())
    np.testing.assert_array_equal(found.ask(1001), before)
    assert found.keys == learner.keys
    assert found.bytes > many * MADE.factors * 4


def test_memory_grows_with_the_names_that_are_kept() -> None:
    short, long = MADE.learner(), MADE.learner()
    for number in range(MADE.online.capacity):
        short.tell((1001, f"{number}"))
        long.tell((1001, f"{number}" + "a" * 1000))
    assert long.bytes - short.bytes == 1000 * MADE.online.capacity
    assert Learner.load(long.dump(), MADE.model()).bytes == long.bytes


def test_the_state_of_another_training_is_refused_and_so_are_damaged_bytes() -> None:
    learner = MADE.learner()
    tell(learner, [(99, 3)])
    data = learner.dump()
    for other in (replace(MADE, l2=3.0), replace(MADE, seed=1), replace(MADE, online=Online())):
        with pytest.raises(ValueError, match="found that of another training or declaration"):
            Learner.load(data, other.model())
    for bad in (data[:-1], data[:60], data + b"0", data[:-9] + b"x" + data[-8:]):
        with pytest.raises(ValueError, match="damaged or cut bytes"):
            Learner.load(bad, MADE.model())
    for bad in (b"", b"other" + data, data[:30]):
        with pytest.raises(ValueError, match=r"allowed: what dump\(\) gave"):
            Learner.load(bad, MADE.model())
    assert learner.digest == MADE.learner().digest != replace(MADE, l2=3.0).learner().digest


# -- guard -----------------------------------------------------------------------------------------

GUARDED = Made(users=200, items=100, events=3000, online=Online(capacity=8, evidence=300))


@pytest.fixture(scope="module")
def poisoned() -> Learner:
    """Told of 4,000 random items, and then of what users really had."""
    learner = GUARDED.learner()
    random = np.random.default_rng(3)
    tell(learner, np.stack([random.integers(0, n, 4000) for n in (200, 100)], axis=1))
    assert not learner.rolled_back, "neither model foresees what is random"
    learner.tell((21, "item 900"))
    learner.changed()
    tell(learner, GUARDED.pairs(1200, 7))
    return learner


def test_events_like_those_of_training_leave_the_learnt_vectors() -> None:
    learner = GUARDED.learner()
    tell(learner, GUARDED.pairs(3000, 7))
    assert not learner.rolled_back
    figures = learner.figures()
    assert figures["compared"] > 1000
    assert 0.5 < figures["auc_frozen"] < figures["auc_online"] < 1


def test_poisoned_events_bring_the_trained_vectors_back(poisoned: Learner) -> None:
    assert poisoned.rolled_back
    assert poisoned.figures()["rolled_back"] == 1
    assert poisoned.standing.online < poisoned.standing.frozen - GUARDED.online.guard
    trained = GUARDED.learner()
    for name, array in trained.tensors().items():
        np.testing.assert_array_equal(poisoned.tensors()[name], array)
    users = np.arange(200) * 10 + 1
    assert np.isnan(poisoned.rows(users)[USER]).all()
    changed = poisoned.changed()
    assert changed[ITEMS].tolist() == [*range(GUARDED.items + 1)]
    assert changed[NEW].tolist() == [0]


def test_what_users_had_is_left_out_after_the_learnt_vectors_are_given_up(
    poisoned: Learner,
) -> None:
    learner = Learner.load(poisoned.dump(), GUARDED.model())
    learner.changed()
    tell(learner, [(777, 4), (777, 6)])
    assert learner.had(7771)[:3].tolist() == [4, 6, GUARDED.items + GUARDED.online.capacity]
    assert learner.ask(7771) is None
    refused = learner.refused
    assert learner.tell((7771, "item 901")) == (0, 0, 0)
    assert learner.refused == refused + 1
    assert not learner.changed()
    before = learner.standing.events
    tell(learner, GUARDED.pairs(50, 9))
    assert learner.standing.events == before


def test_a_state_that_was_given_up_stays_so_when_it_is_read_back(poisoned: Learner) -> None:
    found = Learner.load(poisoned.dump(), GUARDED.model())
    assert found.rolled_back
    assert found.dump() == poisoned.dump()
    np.testing.assert_array_equal(items_of(found), items_of(GUARDED.learner()))
    assert catalogue_of(found) == catalogue_of(GUARDED.learner())
    users = np.arange(200) * 10 + 1
    np.testing.assert_array_equal(found.rows(users)[HAD], poisoned.rows(users)[HAD])


def test_a_new_item_is_held_against_no_model_before_it_was_told_of() -> None:
    learner = GUARDED.learner()
    learner.tell((21, "item 900"))
    assert learner.standing.events == 0
    learner.tell((31, "item 900"))
    assert learner.standing.events == 1
    assert learner.standing.frozen == 0, "the trained model cannot recommend it"


def test_a_standing_is_a_mean_at_first_and_then_decays() -> None:
    standing = Standing(guard=0.1, evidence=4)
    for online in (1.0, 0.0, 0.5, 0.5):
        assert not standing.worse
        standing.add(online, 1.0)
    assert (standing.online, standing.frozen) == (0.5, 1.0)
    assert standing.worse
    standing.add(1.0, 0.0)
    assert (standing.online, standing.frozen) == (0.625, 0.75)
    assert standing.worse
    standing.add(1.0, 0.75)
    assert not standing.worse


def test_drawn_places_are_those_of_the_events_number_and_spread_evenly() -> None:
    found = np.array([drawn(1, event, 10) for event in range(2000)])
    assert found.shape == (2000, 16)
    np.testing.assert_array_equal(found[777], drawn(1, 777, 10))
    counts = np.bincount(found.astype(int).ravel(), minlength=10)
    assert len(counts) == 10
    assert (np.abs(counts - 3200) < 250).all(), "four and a half standard deviations"
    assert (drawn(1, 5, 1000) != drawn(2, 5, 1000)).any()
    assert (drawn(1, 5, 1000) != drawn(1, 6, 1000)).any()


def test_an_equal_score_counts_half() -> None:
    assert auc([2.0, 1.0, 2.0, 3.0, -np.inf]) == (1 + 0.5 + 0 + 1) / 4
    assert raw((2, 3)) == (21, "item 3")
