"""The order of rows that lie in several places, and which observations come too late."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.core.batch import Batch
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.tracks import Tracks
from drivetrain.core.window import Window, Windows
from drivetrain.events.spark.homes import Home, in_time, lay, ordered
from drivetrain.events.spark.segments import Cut
from drivetrain.events.windowed.keyed import opened

SCHEMA = Schema((Field("at", "timestamp"), Field("key", "int64")))
TIMES = st.integers(0, 30) | st.sampled_from((MISSING_INT, MISSING_INT + 1, 2**63 - 1, -5))


@given(st.lists(TIMES, max_size=30), st.sampled_from((0, 1, 7, 2**62 - 1)), st.integers(0, 30))
def test_what_is_late_is_what_the_kernel_says(times: list[int], lateness: int, cut: int) -> None:
    windows = Windows("at", (("seen", Window(by="key", stat="count", rows=3)),), lateness)
    kernel = Tracks(windows, SCHEMA, 1)
    kept = []
    for number, time in enumerate(times):  # each under a key of its own: only the track is late
        row = Batch({"at": np.array([time]), "key": np.array([number])})
        kept.append(bool(kernel.observe(row).kept))
    at = np.array(times, np.int64)
    first, between = in_time(at[:cut], MISSING_INT, lateness)
    last, watermark = in_time(at[cut:], between, lateness)
    assert [*first.tolist(), *last.tolist()] == kept
    assert watermark == (MISSING_INT if kernel.watermark is None else kernel.watermark)


def test_rows_go_by_the_clocks_and_the_rows_of_a_partition_stay_in_order(tmp_path: Path) -> None:
    windows = Windows("at", (("seen", Window(by="key", stat="count")),), 5)
    cut = Cut(windows, SCHEMA, (), "with_windows(seen=…)")

    def home(partition: int, clocks: list[int], told: list[int]) -> Home:
        count = len(clocks)
        columns = {"clock": clocks, "partition": [partition] * count, "told 0": told}
        columns |= {"offset": list(range(count)), "message": list(range(count))}
        return Home("", lay(tmp_path, pa.table(columns)))

    homes = [home(0, [1, 4, 4, 9], [10, 30, 31, 40]), home(1, [2, 4, 5], [20, 0, MISSING_INT])]
    found, watermarks = ordered(tmp_path, cut, homes, [12], [{3: "refused"}, {}])
    tables = [opened(one.order) for one in found]
    assert [table["rank"].to_pylist() for table in tables] == [[0, 2, 3, -1], [1, 4, 5]]
    assert [table["kind 0"].to_pylist() for table in tables] == [[3, 3, 3, 0], [3, 1, 1]]
    assert watermarks == [31]
