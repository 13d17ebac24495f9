"""Keys are numbered and found as a dictionary would, whatever their columns hold."""

from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.events.asof import LastBefore
from drivetrain.events.by_key import ByKey

NEAR = st.integers(-3, 12)
FAR = st.sampled_from([-(2**63), -(2**40), -1, 0, 1, 2**40, 2**63 - 1])
TEXT = st.sampled_from(["", "a", "b", "aa", "é"])
MOMENT = NEAR.map(lambda days: datetime(1970, 1, 1) + timedelta(days=days))
COLUMNS = {
    pa.int64(): NEAR | FAR,
    pa.float64(): st.sampled_from([0.0, -0.0, 1.5, -1.5, float("inf")]),
    pa.string(): TEXT,
    pa.binary(): TEXT.map(str.encode),
    pa.timestamp("us"): MOMENT,
}


@st.composite
def tables(draw):
    """Two tables of the same one to three columns, with nulls."""
    types = draw(st.lists(st.sampled_from(list(COLUMNS)), min_size=1, max_size=3))
    row = st.tuples(*(st.none() | COLUMNS[kind] for kind in types))
    return types, *(draw(st.lists(row, max_size=12)) for _ in range(2))


def columns(types, rows):
    return [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(types)]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(tables())
def test_a_key_has_the_number_of_its_equals_and_an_unknown_one_none(found):
    types, held, asked = found
    by = ByKey(columns(types, held))
    numbers = {}
    for key, number in zip(held, by.numbers.tolist(), strict=True):
        assert numbers.setdefault(key, number) == number
        assert (number < 0) == (None in key)
    known = {key: number for key, number in numbers.items() if None not in key}
    assert sorted(known.values()) == list(range(len(known)))
    given = by.find(columns(types, asked)).tolist()
    assert given == [known.get(key, -1) for key in asked]


@pytest.mark.parametrize("spread", [1, 1000])
def test_integers_are_found_whether_they_lie_close_or_not(spread):
    held = np.random.default_rng(0).permutation(500) * spread - 70
    asked = np.arange(-80, 600) * spread
    places = {int(number): place for place, number in enumerate(held)}
    by = ByKey([pa.array(held)])
    number = {int(key): int(n) for key, n in zip(held, by.numbers, strict=True)}
    assert by.find([pa.array(asked)]).tolist() == [number.get(int(key), -1) for key in asked]
    assert number.keys() == places.keys()


def test_several_columns_of_many_values_each_are_one_key():
    rows = 1 << 16  # four such columns have 2**64 combinations, one more than numbers
    rng = np.random.default_rng(0)
    keys = [pa.array(rng.permutation(rows)) for _ in range(4)]
    assert np.array_equal(np.sort(ByKey(keys).numbers), np.arange(rows))
    times = pa.array(np.zeros(rows, np.int64), pa.timestamp("us"))
    search = LastBefore(keys, times, strict=False)
    assert np.array_equal(search.find(keys, times), np.arange(rows))
    others = [*keys[:3], pa.array(np.roll(keys[3].to_numpy(), 1))]
    assert (search.find(others, times) == -1).all()
