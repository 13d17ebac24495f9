"""A declared system with windows, run and served: a raw event gets the prediction of offline."""

import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import drivetrain as dt
from drivetrain.core.batch import Batch
from drivetrain.core.seams import Shard
from drivetrain.core.site import ServeSite, Site
from drivetrain.pipeline import run
from drivetrain.serve.server import running
from drivetrain.serving import server_of


def asked(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body, default=str).encode())
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def test_a_raw_event_gets_the_prediction_that_it_gets_offline(ran: Any, site: Site) -> None:
    events = dt.Parquet(ran.folder / "events.parquet", time="at").with_windows(
        usual=dt.Window("amount", by="shop", stat="mean", over="30d"),
        often=dt.Window(by=("shop", "note"), stat="count", over="60d"),
        before=dt.Window("amount", by="note", stat="last"),
    )
    split = events.split(dt.TimeSplit(validate="2024-07-01", test="2024-09-01"))
    windows = (dt.Scale("usual"), dt.Scale("often"), dt.Scale("before"), dt.Missing("before"))
    features = (dt.Scale("amount"), *windows, dt.Index("shop"))
    bundle = run(replace(ran.system, events=split, features=features, compress=()), site)
    assert bundle is not None
    offline = Batch.concat(list(split.batches("test", Shard())))
    rows = pq.read_table(ran.folder / "events.parquet").to_pylist()
    plain = ("at", "shop", "note", "amount")
    raw = [{name: row[name] for name in plain} for row in rows]
    for row in raw:
        row["at"] = row["at"].isoformat()
        row["amount"] = row["amount"] if np.isfinite(row["amount"]) else None
    first = len(rows) - len(offline)
    state = replace(site, serve=ServeSite(port=0, state=str(Path(site.work) / "state")))
    with running(server_of(state, [str(bundle.path)])) as url:
        name = bundle.manifest.name
        told = asked(f"{url}/observe/{name}", {"rows": raw[:first]})
        assert (told["late"], told["durable"]) == (0, True)
        for number, row in enumerate(raw[first : first + 40]):
            (found,) = asked(f"{url}/predict/{name}", row)["predictions"]
            alone = offline.slice(number, number + 1).select(bundle.manifest.inputs.names)
            expected = bundle.predict(alone)
            for output in bundle.manifest.outputs.names:
                assert np.float32(found[output]) == expected[output].reshape(-1)[0]
            asked(f"{url}/observe/{name}", row)
