"""What lies on disk is what was put there, in whatever order and pieces."""

import errno
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.events.windowed import spill
from drivetrain.events.windowed.spill import Rows, Values


@settings(max_examples=40)
@given(st.permutations(range(23)), st.lists(st.integers(0, 23)), st.lists(st.integers(0, 23)))
def test_values_are_taken_in_order_whatever_the_order_in_which_they_were_put(
    tmp_path_factory, order, puts, takes
):
    forms = [("int64", ()), ("float64", (2,))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "SPAN", 5)
        values = Values(tmp_path_factory.mktemp("values"), forms, "step")
        for rows in np.split(np.array(order), sorted(puts)):
            values.put(rows, [rows * 10, np.stack((rows / 2, -rows), axis=1)])
        cuts = [0, *sorted(takes), 23]
        parts = [values.take(a, b) for a, b in pairwise(cuts)]
    whole = [np.concatenate(column) for column in zip(*parts, strict=True)]
    assert whole[0].tolist() == [10 * n for n in range(23)]
    assert whole[1].tolist() == [[n / 2, -n] for n in range(23)]


def test_rows_are_read_as_they_were_added_as_often_as_wanted(tmp_path):
    rows = Rows(tmp_path / "rows.arrow", "step")
    whole = pa.table({"a": [1, 2, 3, 4], "b": ["w", None, "y", "z"], "c": [[1, 2]] * 4})
    pieces = [whole.slice(0, 3), whole.slice(3, 0), whole.slice(3)]
    for piece in pieces:
        rows.add(piece)
    rows.close()
    for _ in range(2):
        assert [part.to_pylist() for part in rows.read()] == [p.to_pylist() for p in pieces]
    assert [part.column_names for part in rows.read(["c", "a"])] == [["a", "c"]] * 3
    assert list(Rows(tmp_path / "none.arrow", "step").read()) == []


def test_a_full_disk_names_the_step(tmp_path, monkeypatch):
    def full(self, *args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spill.Path, "open", full)
    values = Values(tmp_path, [("int64", ())], "with_windows(spent=…)")
    with pytest.raises(OSError, match=r"with_windows\(spent=….*do not fit.*No space") as caught:
        values.put(np.arange(3), [np.arange(3)])
    assert caught.value.errno == errno.ENOSPC
