"""Windows of all real flights: filled in afterwards, and kept while events arrive, to the last bit.

    python bench/skew_windows.py --quick --json

One side is the plan of `examples/flights_windows.py` over all 336,776 scheduled flights, as
training reads it. The other is what a server keeps: it is told of departures and arrivals as they
become known, some of them out of order and late, and is asked at each flight's scheduled departure.
Two days are told and asked one row at a time. The figure is how many flights differ in any bit.

The second figure is the peak memory of a plan with windows over sixteen times the rows: made rows
in no order, so that all of them are laid down and sorted.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.figure import Figure, show, words
from drivetrain.core.batch import Array, Batch
from drivetrain.core.schema import MISSING_INT, Schema
from drivetrain.core.tracks import Tracks
from drivetrain.core.window import Windows
from drivetrain.declaration import load
from drivetrain.events.duckdb import Limits, engine
from drivetrain.events.plan import stream
from drivetrain.events.windows import kept

ROOT = Path(__file__).resolve().parent.parent
MINUTE = 60_000_000
BLOCK = 10 * MINUTE
"""So long a server may wait before it is told; within it, events come in any order."""
ALONE = 2 * 24 * 60 * MINUTE
ROWS = 336_776


def figures(quick: bool) -> Iterator[Figure]:
    """``skew_online_offline_rows`` and ``windows_memory_16x_vs_1x``."""
    windows, schema, flights = offline()
    differ = different(flights, online(windows, schema, flights))
    yield Figure(
        figure="skew_online_offline_rows",
        value=differ,
        low=differ,
        high=differ,
        peer=f"the backfill of {len(flights):,} flights",
        goal=0,
    )
    peaks: dict[int, list[float]] = {1: [], 16: []}
    for _ in range(1 if quick else 3):
        for times, found in peaks.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--child", folder, str(ROWS * times)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    ratios = [b / a for a in peaks[1] for b in peaks[16]]
    yield Figure(
        figure="windows_memory_16x_vs_1x",
        value=min(peaks[16]) / min(peaks[1]),
        low=min(ratios),
        high=max(ratios),
        peer="itself with a sixteenth of the rows",
        goal=1.1,
    )


# -- offline and online ----------------------------------------------------------------------------


def offline() -> tuple[Windows, Schema, Batch]:
    """The windows of the flights system, what they read, and all flights with both."""
    system = load(ROOT / "examples" / "flights_windows.py")
    found = kept(system.events, system.columns)
    assert found is not None
    names = (*found.schema.names, *found.windows.names)
    with engine(Limits()) as running:
        parts = list(stream(found.step, names, running, Limits()))
    batches = [Batch.from_arrow(part, found.step.schema.select(names)) for part in parts]
    return found.windows, found.schema, Batch.concat(batches)


def online(windows: Windows, schema: Schema, rows: Batch) -> dict[str, Array]:
    """The windows of rows whose events arrive in order of time, block by block.

    Args:
        windows: the declaration; it allows observations to be late by :data:`BLOCK`.
        schema: of the columns that it asks for and observes.
        rows: with these columns.
    """
    tracks = Tracks(windows, schema, threads=1)
    fields = {field.name: field for field in tracks.fields}
    found = {name: np.empty(len(rows), field.numpy) for name, field in fields.items()}
    groups = [windows.asked, *_told_together(windows).values()]
    columns = [{name: rows[name] for name in names} for names in groups]
    times, kinds, numbers = _events(windows, rows)
    rng = np.random.default_rng(0)

    def do(kind: int, chosen: Array) -> None:
        batch = Batch({name: column[chosen] for name, column in columns[kind].items()})
        if kind:
            tracks.observe(batch)
            return
        for name, values in tracks.read(batch).items():
            found[name][chosen] = values

    alone = np.searchsorted(times, (times[len(times) // 2], times[len(times) // 2] + ALONE))
    blocks = np.flatnonzero(np.diff(times // BLOCK, prepend=-1, append=-1))
    for start, stop in zip(blocks[:-1].tolist(), blocks[1:].tolist(), strict=True):
        if alone[0] <= start < alone[1]:
            for event in range(start, stop):
                do(int(kinds[event]), numbers[event : event + 1])
            continue
        for kind in (*range(1, len(groups)), 0):
            chosen = numbers[start:stop][kinds[start:stop] == kind]
            if len(chosen):
                do(kind, rng.permutation(chosen))
    return found


def _told_together(windows: Windows) -> dict[str, tuple[str, ...]]:
    """The columns that become known at one time, by the column that says when."""
    told: dict[str, dict[str, None]] = {}
    for track in windows.tracks:
        value = () if track.value is None else (track.value,)
        names = (*track.keys, *value, track.known)
        told.setdefault(track.known, {}).update(dict.fromkeys(names))
    return {known: tuple(names) for known, names in told.items()}


def _events(windows: Windows, rows: Batch) -> tuple[Array, Array, Array]:
    """Time, kind (0: asked, else what becomes known) and row of all that happens, in order."""
    parts: list[tuple[Array, Array, Array]] = []
    for kind, name in enumerate((windows.time, *_told_together(windows))):
        there = np.flatnonzero(rows[name] != MISSING_INT)
        parts.append((rows[name][there], np.full(len(there), kind), there))
    times, kinds, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(times, kind="stable")
    return times[order], kinds[order], numbers[order]


def different(offline: Batch, online: Mapping[str, Array]) -> int:
    """How many rows differ in any bit of any window."""
    differs = np.zeros(len(offline), dtype=bool)
    for name, values in online.items():
        differs |= offline[name].view(np.int64) != values.view(np.int64)
    return int(differs.sum())


# -- memory ----------------------------------------------------------------------------------------


def child(folder: Path, rows: int) -> None:
    """Prepare made rows with windows, and print the peak of this process in MB."""
    writer = (
        "import sys; from bench.skew_windows import write; write(sys.argv[1], int(sys.argv[2]))"
    )
    path = folder / "made.parquet"  # written elsewhere, so that this process' peak is the plan's
    subprocess.run([sys.executable, "-c", writer, str(path), str(rows)], cwd=ROOT, check=True)

    import drivetrain as dt
    from drivetrain.events.prepared import prepare

    table = dt.Parquet(path, time="at").with_windows(
        count=dt.Window(by="key", stat="count", over="1h"),
        mean=dt.Window("value", by="key", stat="mean", over="1d"),
        most=dt.Window("value", by="key", stat="max", over="1d", known="known"),
    )
    split = table.split(dt.HashSplit(columns=("key",)))
    prepare(split, ("value", "count", "mean", "most"), folder / "prepared", memory="100MB")
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024)


def write(path: str, rows: int) -> None:
    """Made events of 20,000 keys in no order of time, a second apart."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    schema = pa.schema(
        {
            "at": pa.timestamp("us"),
            "known": pa.timestamp("us"),
            "key": pa.int64(),
            "value": pa.float64(),
        }.items()
    )
    with pq.ParquetWriter(path, schema) as writer:
        for _ in range(0, rows, 1 << 17):
            at = rng.integers(0, rows, 1 << 17) * 1_000_000
            known = at + rng.integers(0, 3600, len(at)) * 1_000_000
            columns = (
                *(at.astype("M8[us]"), known.astype("M8[us]")),
                *(rng.integers(0, 20_000, len(at)), rng.normal(size=len(at))),
            )
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True))))


if __name__ == "__main__":
    if "--child" in sys.argv:
        child(Path(sys.argv[2]), int(sys.argv[3]))
        sys.exit()
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
