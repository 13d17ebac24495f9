"""The same 100,000 real flights scored in training's path and over HTTP, compared to the last bit.

    python bench/skew.py --quick --json

One side reads the prepared Parquet files as training does and runs the bundle's graph over 1,000
rows at a time; the other sends the same rows as JSON, as a person would write them, to a running
server, and 2,000 of them once more one by one. All run the same graph, so the difference must be 0.
(Training cuts the feature part of that graph where a column of texts ends, to compute each distinct
text once: that this gives the same bits is a property test, `tests/features/test_transform.py`.)
The model is the flights system's, smaller and trained for one epoch: its size is not the subject.
"""

import http.client
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import drivetrain as dt
from bench.figure import Figure, show, words
from drivetrain.core.batch import Batch
from drivetrain.core.schema import MISSING_INT
from drivetrain.declaration import load, with_settings
from drivetrain.events.prepared import Prepared, find
from drivetrain.pipeline import run
from drivetrain.serve.server import Server, running

ROOT = Path(__file__).resolve().parent.parent
ROWS = 100_000
CHUNK = 1000
ALONE = 2000
SMALL = ("train.epochs=1", "model.members=1", "model.hidden=[32]")


def figures(quick: bool) -> Iterator[Figure]:
    """``skew_max_abs``: the greatest difference of two predictions of one row."""
    with tempfile.TemporaryDirectory() as folder:
        site = dt.Site(store=f"{folder}/store", work=f"{folder}/work", device="cpu")
        declared = load(ROOT / "examples" / "flights.py")
        system, _ = with_settings(declared, site, SMALL)
        assert system is not None
        bundle = run(system, site)
        assert bundle is not None
        events = find(Path(site.work, "events"), bundle.manifest.parents["events"])
        assert events is not None
        session = bundle.graph.session(threads=1)
        worst, alone = 0.0, ALONE
        with running(Server({"flights": bundle.path}, port=0)) as url:
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
            for rows in _rows(events, bundle.manifest.inputs.names):
                trained = session.run(rows)["late"]
                served = np.array(_ask(connection, rows), dtype=np.float32)
                worst = max(worst, float(np.abs(trained - served).max()))
                for i in range(min(alone, len(rows))):
                    (single,) = _ask(connection, rows.slice(i, i + 1))
                    worst = max(worst, abs(float(trained[i]) - float(np.float32(single))))
                    alone -= 1
            connection.close()
    yield Figure(
        figure="skew_max_abs",
        value=worst,
        low=worst,
        high=worst,
        peer="training's path, 100,000 real flights",
        goal=0.0,
    )


def _rows(events: Prepared, names: tuple[str, ...]) -> Iterator[Batch]:
    left = ROWS
    for batch in events.select(names).batches("train"):
        for start in range(0, len(batch) - CHUNK + 1, CHUNK):
            yield batch.slice(start, start + CHUNK)
            left -= CHUNK
            if left == 0:
                return


def _ask(connection: http.client.HTTPConnection, rows: Batch) -> list[float]:
    body = json.dumps({"rows": [_plain(row) for row in rows.rows()]})
    connection.request("POST", "/predict/flights", body, {"Content-Type": "application/json"})
    answer = json.load(connection.getresponse())
    return [row["late"] for row in answer["predictions"]]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    absent = ("", MISSING_INT)
    return {k: None if v in absent or v != v else v for k, v in row.items()}


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
