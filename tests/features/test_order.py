"""Windows of shuffled chunks cover a split; shards are slices of equal length."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.seams import Order, Shard
from drivetrain.features.order import CHUNKS, Windows, slice_of

some = settings(max_examples=100, deadline=None, derandomize=True)


def rows_of(windows: Windows, start: int, stop: int) -> list[int]:
    found: list[int] = []
    for part in windows.parts(start, stop):
        rows = np.concatenate([np.arange(*span) for span in part.spans])
        found += (rows if part.rows is None else rows[part.rows]).tolist()
    return found


@some
@given(
    rows=st.integers(0, 500),
    chunk=st.integers(1, 40),
    order=st.one_of(st.none(), st.builds(Order, st.integers(), st.integers(0, 5))),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_slice_of_the_order_is_that_slice_of_the_whole(
    rows: int, chunk: int, order: Order | None, cut: tuple[float, float]
) -> None:
    windows = Windows(rows, chunk, order)
    whole = rows_of(windows, 0, rows)
    assert sorted(whole) == list(range(rows))
    start, stop = sorted(int(share * rows) for share in cut)
    assert rows_of(windows, start, stop) == whole[start:stop]


@some
@given(rows=st.integers(0, 300), count=st.integers(1, 9), size=st.integers(1, 40))
def test_shards_are_equal_to_within_a_row_and_a_batch(rows: int, count: int, size: int) -> None:
    slices = [slice_of(Shard(index, count), rows) for index in range(count)]
    assert [start for start, _ in slices] == [0, *(stop for _, stop in slices[:-1])]
    assert slices[-1][1] == rows
    lengths = [stop - start for start, stop in slices]
    assert max(lengths) - min(lengths) <= 1
    batches = {-(-length // size) for length in lengths}
    if (rows // count) % size or not rows % count:
        assert len(batches) == 1


def test_windows_are_bounded_in_bytes() -> None:
    wide = Windows.of(10_000, 12_288, Order())
    assert wide.chunk * CHUNKS * 12_288 <= 32 << 20
    assert wide.chunk > 100
    assert Windows.of(10, 10**12, Order()).chunk == 1


def test_a_window_mixes_chunks_from_all_over_the_split() -> None:
    windows = Windows(100_000, 100, Order(0, 0))
    first = rows_of(windows, 0, 100 * CHUNKS)
    assert max(first) - min(first) > 50_000
