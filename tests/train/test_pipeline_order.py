"""The order in which stages take micro-batches: no wait in a circle, and memory as promised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.train.stages.order import ORDERS, Action, actions, bubble

schedules = st.sampled_from(ORDERS)
stage_counts = st.integers(2, 7)
batch_counts = st.integers(1, 12)


def run(order: str, stages: int, count: int) -> tuple[list[int], int]:
    """Let all stages go on whenever they can; the most held by each, and the turns that it took."""
    left = [actions(order, s, stages, count) for s in range(stages)]  # pyright: ignore
    done: list[set[Action]] = [set() for _ in range(stages)]
    most, turns = [0] * stages, 0
    while any(left):
        ready: list[tuple[int, Action]] = []
        for stage, rest in enumerate(left):
            if rest:
                action = rest[0]
                needs = stage + 1 if action.backward else stage - 1
                if needs in (-1, stages) or action in done[needs]:
                    ready.append((stage, action))
        assert ready, "all wait for one another"
        turns += 1
        for stage, action in ready:
            left[stage].pop(0)
            assert not action.backward or Action(False, action.number) in done[stage]
            done[stage].add(action)
            held = sum(1 if not each.backward else -1 for each in done[stage])
            most[stage] = max(most[stage], held)
    assert all(len(each) == 2 * count for each in done)
    return most, turns


@given(schedules, stage_counts, batch_counts)
def test_each_stage_takes_each_micro_batch_once_either_way_and_nobody_waits_in_a_circle(
    order: str, stages: int, count: int
) -> None:
    run(order, stages, count)


@given(stage_counts, batch_counts)
def test_1f1b_holds_no_more_than_there_are_stages_left_and_gpipe_all(
    stages: int, count: int
) -> None:
    held, _ = run("1f1b", stages, count)
    assert held == [min(stages - stage, count) for stage in range(stages)]
    assert run("gpipe", stages, count)[0] == [count] * stages


@given(schedules, stage_counts, batch_counts)
def test_either_order_stands_idle_for_the_share_that_bubble_says(
    order: str, stages: int, count: int
) -> None:
    _, turns = run(order, stages, count)
    assert 1 - 2 * count / turns == pytest.approx(bubble(stages, count))
