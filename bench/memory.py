"""Peak memory of the whole path at 1, 4 and 16 times the flights, each in a process of its own.

    python bench/memory.py --quick --json

Events from Parquet through a join, statistics, features and two epochs of training. The rows are
made (`bench/made.py`); the figure is the peak at 16 times over the peak at once, lower is better.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figure import Figure, show, words

ROOT = Path(__file__).resolve().parent.parent
FLIGHTS = 336_776


def figures(quick: bool) -> Iterator[Figure]:
    """``memory_16x_vs_1x``."""
    peaks: dict[int, list[float]] = {1: [], 4: [], 16: []}
    for _ in range(1 if quick else 3):
        for times, found in peaks.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--child", folder, str(FLIGHTS * times)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1])["peak_mb"])
    for times, found in peaks.items():
        print(f"{times:>3} x: {min(found):,.0f} MB", file=sys.stderr)
    ratios = [b / a for a in peaks[1] for b in peaks[16]]
    yield Figure(
        figure="memory_16x_vs_1x",
        value=min(peaks[16]) / min(peaks[1]),
        low=min(ratios),
        high=max(ratios),
        peer="itself with a sixteenth of the rows",
        goal=1.1,
    )


def child(folder: Path, rows: int) -> None:
    """Run the path once and print the peak of this process."""
    writer = "import sys; from bench import made; from pathlib import Path; "
    writer += "made.flights(Path(sys.argv[1]), int(sys.argv[2]))"
    path = folder / "made.parquet"  # written elsewhere, so that this process' peak is the path's
    subprocess.run([sys.executable, "-c", writer, str(path), str(rows)], cwd=ROOT, check=True)

    import drivetrain as dt
    from bench import made
    from drivetrain.models import MLP
    from drivetrain.pipeline import run

    carriers = dt.Parquet(path).select("carrier", "distance").drop_duplicates("carrier")
    system = dt.System(
        name="memory",
        events=dt.Parquet(path, time="at")
        .where(dt.col("distance") > 0)
        .join(carriers, on="carrier", suffix="_first")
        .split(dt.HashSplit(columns=("at", "route"))),
        features=(
            *(dt.Scale(name) for name in made.NUMERIC),
            *(dt.Index(name, min_count=2) for name in made.TEXT),
            dt.Bucket("pressure"),
        ),
        model=MLP(hidden=(16,), dim=4),
        targets=("late",),
        train=dt.Single(loss=dt.BinaryCrossEntropy("late"), epochs=2, batch_size=8192),
        probes=(dt.AUC(),),
    )
    site = dt.Site(store=str(folder / "store"), work=str(folder / "work"), device="cpu")
    assert run(system, site) is not None
    print(json.dumps({"rows": rows, "peak_mb": _peak_kb() / 1024}))


def _peak_kb() -> int:
    """The peak of this process; `ru_maxrss` would remember that of the one that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    if "--child" in sys.argv:
        child(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        options = words(__doc__)
        for measured in figures(options.quick):
            show(measured, options.json)
