"""Windows of shuffled chunks cover a split; shards share its batches."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.seams import Order, Shard
from drivetrain.features.order import CHUNKS, Windows, turns

some = settings(max_examples=100, deadline=None, derandomize=True)


def rows_of(windows: Windows, *ranges: tuple[int, int]) -> list[int]:
    found: list[int] = []
    for part in windows.parts(ranges):
        rows = np.concatenate([np.arange(*span) for span in part.spans])
        found += (rows if part.rows is None else rows[part.rows]).tolist()
    return found


@some
@given(
    rows=st.integers(0, 500),
    chunk=st.integers(1, 40),
    order=st.one_of(st.none(), st.builds(Order, st.integers(), st.integers(0, 5))),
    cuts=st.lists(st.floats(0, 1), max_size=8),
)
def test_ranges_of_the_order_are_those_of_the_whole(
    rows: int, chunk: int, order: Order | None, cuts: list[float]
) -> None:
    windows = Windows(rows, chunk, order)
    whole = rows_of(windows, (0, rows))
    assert sorted(whole) == list(range(rows))
    ends = sorted(int(share * rows) for share in cuts)
    ranges = list(zip(ends[::2], ends[1::2], strict=False))
    expected = [row for low, high in ranges for row in whole[low:high]]
    assert rows_of(windows, *[(low, high) for low, high in ranges if low < high]) == expected


@some
@given(
    rows=st.integers(0, 300),
    count=st.integers(1, 9),
    size=st.integers(9, 60),
    start=st.integers(0, 320),
)
def test_shards_share_each_batch_of_the_order(rows: int, count: int, size: int, start: int) -> None:
    shards = [list(turns(Shard(index, count), size, start, rows)) for index in range(count)]
    whole = list(turns(Shard(), size, start, rows))
    assert {len(ranges) for ranges in shards} == {len(whole)}
    for (first, last), *parts in zip(whole, *shards, strict=True):
        assert [p for low, high in parts for p in range(low, high)] == list(range(first, last))
        sizes = [high - low for low, high in parts]
        assert max(sizes) - min(sizes) <= 1


def test_windows_are_bounded_in_bytes() -> None:
    wide = Windows.of(10_000, 12_288, Order())
    assert wide.chunk * CHUNKS * 12_288 <= 32 << 20
    assert wide.chunk > 100
    assert Windows.of(10, 10**12, Order()).chunk == 1


def test_a_window_mixes_chunks_from_all_over_the_split() -> None:
    windows = Windows(100_000, 100, Order(0, 0))
    first = rows_of(windows, (0, 100 * CHUNKS))
    assert max(first) - min(first) > 50_000
