"""What a run holds is of one moment, whatever changes meanwhile."""

import queue
import threading

import numpy as np
import pytest

from drivetrain.serve.state.published import Published

ROWS, WIDE = 400, 16


class Source:
    """Tensors whose every row holds what it was last written with."""

    def __init__(self, sides=1):
        self.tensors = {"a": np.zeros((ROWS, WIDE), np.float32), "b": np.zeros(ROWS, np.int64)}
        self.published = Published(lambda: self.tensors, sides)

    def change(self, places, value):
        self.tensors["a"][places] = value
        self.tensors["b"][places] = value
        self.published.publish({"a": places, "b": places})


def test_a_side_that_is_held_stays_as_it_was_and_the_next_one_is_new():
    source = Source()
    first = source.published.hold()
    source.change(np.array([1, 2]), 1)
    second = source.published.hold()
    assert not first.arrays["a"].any()
    assert second.arrays["a"][:, 0].tolist()[:4] == [0, 1, 1, 0]
    assert second.arrays["b"].tolist()[:4] == [0, 1, 1, 0]
    source.published.release(first)
    source.published.release(second)


def test_what_nobody_holds_is_changed_where_it_is():
    source = Source()
    for value in range(5):
        source.change(np.array([value]), value)
        side = source.published.hold()
        assert side.arrays["b"][value] == value
        source.published.release(side)
    assert source.published.sides == 1


def test_two_sides_are_enough_for_runs_one_after_the_other():
    source, random = Source(), np.random.default_rng(0)
    for value in range(1, 50):
        side = source.published.hold()
        for _ in range(random.integers(3)):
            source.change(random.integers(0, ROWS, 3), value)
        source.published.release(side)
        now = source.published.hold()
        np.testing.assert_array_equal(now.arrays["a"], source.tensors["a"])
        np.testing.assert_array_equal(now.arrays["b"], source.tensors["b"])
        source.published.release(now)
    assert source.published.sides == 2


def test_sides_that_too_many_held_go_when_they_are_free():
    source = Source()
    held = []
    for value in range(6):
        held.append(source.published.hold())
        source.change(np.array([0]), value + 1)
    assert [side.arrays["b"][0] for side in held] == [0, 1, 2, 3, 4, 5]
    assert source.published.sides == 7
    assert source.published.bytes == 7 * (ROWS * WIDE * 4 + ROWS * 8)
    for side in held:
        source.published.release(side)
    source.change(np.array([0]), 9)
    assert source.published.sides == 2
    held = source.published.hold()
    source.change(np.array([1]), 9)
    assert source.published.hold().arrays["b"][:2].tolist() == [9, 9]


def test_sides_that_were_made_at_once_are_kept_and_no_other_is_made():
    """Memory that is new takes milliseconds, on the thread that answers."""
    source, held = Source(sides=3), []
    made = set(map(id, source.published._others)) | {id(source.published._now)}
    assert source.published.sides == len(made) == 3
    for value in range(20):
        held.append(source.published.hold())
        source.change(np.array([value]), value + 1)
        if len(held) == 2:  # as many runs as there may be at once
            source.published.release(held.pop(0))
        now = source.published._now
        assert id(now) in made
        np.testing.assert_array_equal(now.arrays["a"], source.tensors["a"])
    assert source.published.sides == 3


@pytest.mark.parametrize("sides", [2, 3])
def test_what_nobody_reads_is_never_far_behind(sides):
    source = Source(sides=sides)
    for value in range(ROWS):
        source.change(np.array([value]), value)
        assert max(side.behind for side in source.published._others) <= 64
    held = source.published.hold()
    source.change(np.array([0]), 9)
    assert source.published.hold().arrays["b"].tolist() == [9, *range(1, ROWS)]
    assert held.arrays["b"].tolist() == [*range(ROWS)]


@pytest.mark.parametrize("places", [None, np.arange(ROWS)])
def test_all_rows_may_change_at_once(places):
    source = Source()
    side = source.published.hold()
    source.change(np.array([3]), 1)
    for tensor in source.tensors.values():
        tensor[:] = 7
    source.published.publish({"a": places, "b": places})
    assert (source.published.hold().arrays["a"] == 7).all()
    assert not side.arrays["a"].any()


def test_runs_on_other_threads_see_no_half_of_a_change():
    """Every change writes one value to all rows of a tensor, in many steps; a side in which two
    values stand, or that changes while it is held, is torn."""
    source = Source()
    runs, torn, seen = queue.Queue(), [], set()

    def read():
        while (side := runs.get()) is not None:
            first = [int(side.arrays[name].flat[0]) for name in ("a", "b")]
            for _ in range(20):
                values = {float(v) for name in ("a", "b") for v in np.unique(side.arrays[name])}
                if values != {float(first[0])} or first[0] != first[1]:
                    torn.append(values)
            seen.add(first[0])
            source.published.release(side)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for value in range(1, 301):
        while runs.qsize() > 3:
            threading.Event().wait(0.0001)
        for part in np.array_split(np.random.default_rng(value).permutation(ROWS), 7):
            source.tensors["a"][part] = value
            source.tensors["b"][part] = value
        source.published.publish(dict.fromkeys(("a", "b"), np.arange(ROWS)))
        runs.put(source.published.hold())
    for _ in readers:
        runs.put(None)
    for reader in readers:
        reader.join()
    assert not torn
    assert seen == set(range(1, 301))
    assert source.published.sides <= 2 + 3 + 4
