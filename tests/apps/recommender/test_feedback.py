"""From lists that are drawn to what was told of them, and to what another bundle would earn."""

import http.client
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import drivetrain as dt
from drivetrain.apps.recommender import Explore, Recommender
from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle
from drivetrain.core.seams import SPLITS, Source
from drivetrain.serve.server import Server, running

USERS, ITEMS, ASKED = 100, 5, 1500
WORTH = np.array([[0.7, 0.5, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.5, 0.7]])
"""Made: how likely somebody of each taste takes each item that they look at."""


def bundle_of(folder: Path, text: bool, rerank: tuple[Any, ...], site: Any) -> Bundle:
    """A recommender of two places over all five items."""
    random = np.random.default_rng(1)
    user = np.repeat(np.arange(USERS), 3)
    chances = WORTH[user % 2] / WORTH[user % 2].sum(axis=1, keepdims=True)
    item = (chances.cumsum(axis=1) > random.random(len(user))[:, None]).argmax(axis=1)
    rows = {
        "user": [f"u{n}" for n in user],
        "item": [name(n, text) for n in item],
        "request": pa.nulls(len(user), pa.string()),
        "part": dt.random_parts(user, validate=0.1, test=0.1).tolist(),
    }
    path = folder / "rows.parquet"
    pq.write_table(pa.table(rows), path)
    recall = dt.Popularity(target="item", seen="keep")
    system = dt.System(
        name="shop",
        events=dt.Parquet(str(path)).split(dt.ColumnSplit("part")),
        features=(dt.Index("user"),),
        targets=("item",),
        train=Recommender(target="item", recall=recall, k=2, candidates=ITEMS, rerank=rerank),
        probes=(dt.Ranking(k=2),),
    )
    bundle = dt.run(system, site)
    assert bundle is not None
    return bundle


def name(number: int, text: bool) -> Any:
    return f"item {number}" if text else int(number)


def number(item: Any) -> int:
    return int(str(item).removeprefix("item "))


def listed(server: Server, rows: list[dict[str, Any]]) -> list[list[Any]]:
    """The items that the server answers to each row."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    connection.request("POST", "/predict/shop", json.dumps({"rows": rows}))
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    assert answer.status == 200, found
    return [row["items"] for row in found["predictions"]]


def all_rows(table: Source) -> Iterator[Batch]:
    for split in SPLITS:
        yield from table.batches(split)


def took(user: int, items: Sequence[Any], random: np.random.Generator) -> Any:
    """Somebody looks at the first place, and at the second if they did not take it."""
    for item in items:
        if random.random() < WORTH[user % 2, number(item)]:
            return item
    return None


def earns(bundle: Bundle) -> float:
    """What the bundle's lists earn in truth, over all users alike."""
    rows = [{"user": f"u{n}"} for n in range(USERS)]
    lists = bundle.predict(rows)["items"]
    first, second = (
        np.array([WORTH[user % 2, number(item)] for user, item in enumerate(column)])
        for column in lists.T.tolist()
    )
    return float((first + (1 - first) * second).mean())


@pytest.mark.slow
@pytest.mark.parametrize("text", [False, True], ids=["int64", "text"])
def test_another_bundle_is_judged_by_what_a_drawing_one_was_told(
    text: bool, tmp_path: Path, site: Any
) -> None:
    served = bundle_of(tmp_path, text, (Explore(0.7),), site)
    other = bundle_of(tmp_path, text, (), site)
    random = np.random.default_rng(2)
    told: dict[str, Any] = {}
    server = Server({"shop": served.path}, port=0, feedback=tmp_path / "feedback")
    users = random.integers(0, USERS, ASKED)
    asked = [{"user": f"u{user}", "request": f"request {n}"} for n, user in enumerate(users)]
    with running(server):
        lists = [row for at in range(0, ASKED, 50) for row in listed(server, asked[at : at + 50])]
    for row, user, items in zip(asked, users.tolist(), lists, strict=True):
        told[row["request"]] = took(user, items, random)
    kind = pa.string() if text else pa.int64()
    outcomes = {"request": [*told], "took": pa.array([*told.values()], kind)}
    pq.write_table(pa.table(outcomes), tmp_path / "outcomes.parquet")

    log = dt.Parquet(str(tmp_path / "feedback/shop/*/*.parquet"), time="at")
    events = log.join(dt.Parquet(str(tmp_path / "outcomes.parquet")), on="request")
    probe = dt.OffPolicy(
        chosen="took",
        action="prediction.items",
        propensity="prediction.propensities",
        user="user",
        folds=3,
        resamples=300,
    )
    found = {m.name.removeprefix("off_policy/"): m.value for m in probe(other, all_rows(events))}
    assert found["rows"] == ASKED
    assert found["logged"] == pytest.approx(np.mean([v is not None for v in told.values()]))
    assert found["mean_weight"] == pytest.approx(1, abs=0.25)
    truth = earns(other)
    for estimator in ("ips", "snips", "dr"):
        assert found[f"{estimator}/low"] < truth < found[f"{estimator}/high"], estimator
    assert found["lift/low"] > 0, "what exploring costs"
    itself = dt.OffPolicy(
        chosen="took",
        action="prediction.items",
        propensity="prediction.propensities",
        seed="request",
        draws=20,
        resamples=300,
    )
    same = {m.name.removeprefix("off_policy/"): m.value for m in itself(served, all_rows(events))}
    assert same["dr/low"] < same["logged"] < same["dr/high"]
    assert same["uncovered"] < 0.5
