"""Factorization at the size of a large shop, through the whole path, in bounded memory.

    python bench/scale.py --quick --json

20 million made events (seeded) of 1 million users and 200,000 items, items by a power law, in
Parquet; ``--quick``: a fiftieth of each. ``dt.run`` reads them, fits ``ALS``, writes the graph,
checks it and ranks for some hundred users. It runs in a process of its own that may hold 8 GB.

``als_scale_peak_gb`` is the peak of that process, lower is better; ``als_scale_cpu_us`` CPU
microseconds for each event, of all stages. How long each stage took is told on standard error.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.figure import Figure, figure, show, words

ROOT = Path(__file__).resolve().parent.parent
EVENTS, USERS, ITEMS = 20_000_000, 1_000_000, 200_000
BYTES = 8 << 30
"""What the process that is measured may hold of its own."""
TESTED = 500
_AT_ONCE = 1_000_000


def write(path: Path, events: int, users: int, items: int) -> None:
    """Made rows ``user``, ``item``, ``part``; all but a few are of the part ``train``.

    Args:
        path: of the Parquet file.
        events: how many rows.
        users: they have about equally many rows.
        items: the share of the ``n``-th is by ``n ** -0.8``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    ends = np.cumsum(1 / np.arange(1, items + 1) ** 0.8)
    parts = np.array(["train", "validate", "test"])
    fields = [("user", pa.int64()), ("item", pa.int64()), ("part", pa.string())]
    with pq.ParquetWriter(path, pa.schema(fields)) as file:
        for first in range(0, events, _AT_ONCE):
            rows = min(_AT_ONCE, events - first)
            item = np.searchsorted(ends, random.random(rows) * ends[-1])
            part = np.zeros(rows, np.int64)
            if not first:
                part[:TESTED], part[TESTED : 2 * TESTED] = 1, 2
            user = random.integers(0, users, rows)
            columns = [user, np.minimum(item, items - 1), parts[part]]
            file.write_table(pa.table(dict(zip(("user", "item", "part"), columns, strict=True))))


def child(folder: Path, users: int) -> None:
    """Run the path once and print what it took."""
    import drivetrain as dt
    from drivetrain.core.metric import Metric

    stages: dict[str, float] = {}

    def heard(emitted: object) -> None:
        if isinstance(emitted, Metric) and emitted.name.endswith(("/seconds", "/loss")):
            stages[emitted.name] = emitted.value
            print(f"{emitted.name} {emitted.value:.4f}, {_peak() / 2**30:.2f} GB",
                  file=sys.stderr, flush=True)  # fmt: skip

    system = dt.System(
        name="scale",
        events=dt.Parquet(folder / "events.parquet").split(dt.ColumnSplit("part")),
        features=(dt.Index("user", size=users),),
        targets=("item",),
        train=dt.ALS(target="item", k=20),
        probes=(dt.Ranking(k=20),),
    )
    site = dt.Site(store=str(folder / "store"), work=str(folder / "work"), device="cpu")
    begin = time.process_time()
    bundle = dt.run(system, site, emit=heard)
    assert bundle is not None
    print(json.dumps({"cpu": time.process_time() - begin, "peak": _peak(), "stages": stages}))


def _peak() -> int:
    """Bytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def figures(quick: bool) -> Iterator[Figure]:
    """Memory and time of the path at the size that the first lines name."""
    part = 50 if quick else 1
    events, users, items = EVENTS // part, USERS // part, ITEMS // part
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as at:
        write(Path(at) / "events.parquet", events, users, items)
        done = subprocess.run(
            [sys.executable, __file__, "--child", at, str(users)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=7200,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES)),
        )
    told = json.loads(done.stdout.splitlines()[-1])
    about = f"{events:,} made events, {users:,} users, {items:,} items"
    yield figure("als_scale_peak_gb", [told["peak"] / 2**30], f"8 GB, {about}", 8.0)
    yield figure("als_scale_cpu_us", [told["cpu"] / events * 1e6], f"itself, {about}", 0.0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        options = words(__doc__)
        for each in figures(options.quick):
            show(each, options.json)
