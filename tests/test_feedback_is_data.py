"""What the server saw and said is events: outcomes join it by request, and it trains again."""

import json
import math
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import drivetrain as dt
from drivetrain.core.schema import MISSING_INT
from drivetrain.core.site import Site
from drivetrain.models import LogisticRegression
from drivetrain.serve.server import Server, running

ROWS = 400


def ask(url: str, model: str, rows: list[dict[str, Any]], request: str) -> list[dict[str, Any]]:
    body = json.dumps({"rows": rows}).encode()
    headers = {"Content-Type": "application/json", "x-request-id": request}
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/predict/{model}", body, headers), timeout=30
    ) as answer:
        return json.load(answer)["predictions"]


def as_written(value: Any) -> Any:
    """A value as a person writes it: null for what is missing, and JSON has no infinity."""
    absent = value in ("", MISSING_INT) or (isinstance(value, float) and not math.isfinite(value))
    return None if absent else value


@pytest.mark.slow
def test_feedback_with_its_outcomes_trains_the_next_bundle(
    ran: Any, site: Site, tmp_path: Path
) -> None:
    names = ran.bundle.manifest.inputs.names
    made = dt.Batch.from_arrow(
        pq.read_table(ran.folder / "events.parquet"), ran.bundle.manifest.inputs
    )
    plain = [{n: as_written(row[n]) for n in names} for row in list(made.rows())[:ROWS]]
    with running(Server({"made": ran.bundle.path}, port=0, feedback=tmp_path / "feedback")) as url:
        said = [ask(url, "made", [row], f"r{i}")[0]["bad"] for i, row in enumerate(plain)]

    outcomes = tmp_path / "outcomes.parquet"
    requests = [f"r{i}" for i in range(ROWS)]
    pq.write_table(
        pa.table({"request_id": requests, "outcome": [int(i % 3 == 0) for i in range(ROWS)]}),
        outcomes,
    )
    feedback = dt.Parquet(tmp_path / "feedback" / "made" / "*" / "*.parquet").join(
        dt.Parquet(outcomes), on="request_id", how="inner"
    )
    seen = dt.Batch.concat(list(feedback.batches("train")))
    assert 0 < len(seen) < ROWS
    by_request = dict(zip(requests, said, strict=True))
    for request, prediction in zip(seen["request_id"], seen["prediction.bad"], strict=True):
        assert prediction == pytest.approx(by_request[request], abs=1e-7)

    again = dt.run(
        dt.System(
            name="again",
            events=feedback,
            features=(dt.Scale("amount"), dt.Index("shop")),
            model=LogisticRegression(),
            targets=("outcome",),
            train=dt.Single(loss=dt.BinaryCrossEntropy("outcome"), batch_size=64),
        ),
        site,
    )
    assert again is not None
    assert again.manifest.outputs.names == ("outcome",)
