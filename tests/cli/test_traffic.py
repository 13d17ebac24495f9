"""The verbs that say who answers an alias: canary, shadow, rollback, history; and a server."""

import http.client
import json
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

from drivetrain.cli import main
from drivetrain.core.bundle import Manifest
from drivetrain.core.graph import Graph
from drivetrain.registry.registry import Registry

Drive = Callable[..., tuple[int, str, str]]
COLUMNS = ["version", "role", "x", "prediction.score"]


def register(store: Registry, factor: float) -> str:
    """A bundle that multiplies ``x`` by ``factor``; its digest."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["score"])],
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    made = Graph.from_proto(model)
    manifest = Manifest(name="made", inputs=made.inputs, outputs=made.outputs)
    return store.write(made, manifest, {}).digest


@pytest.fixture
def store(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "store")


@pytest.fixture
def digests(store: Registry) -> list[str]:
    """Three bundles, the first of which answers."""
    found = [register(store, float(factor)) for factor in (1, 2, 3)]
    store.promote(found[0], "made")
    return found


@pytest.fixture
def drive(store: Registry, capsys: pytest.CaptureFixture[str]) -> Drive:
    """Runs a verb on the store: its status, its output, its errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([*map(str, arguments), f"--set=store={store.root}"])
        return status, *capsys.readouterr()

    return run


def test_a_canary_begins_and_ends_and_is_told(drive, store, digests):
    status, out, err = drive("canary", "made", digests[1][:12], "--share", 0.05)
    assert (status, err) == (0, "")
    assert f"{digests[1][:12]} is its canary at 0.05 of the requests" in out
    assert store.traffic("made").share == 0.05
    assert f"{digests[1][:12]} is its canary" in drive("show", "made")[1]
    status, out, _ = drive("canary", "made", "--end", "--json")
    assert (status, json.loads(out)["canary"], json.loads(out)["share"]) == (0, None, 0.0)


def test_a_shadow_begins_and_ends(drive, store, digests):
    status, out, _ = drive("shadow", "made", digests[2])
    assert (status, store.traffic("made").shadow) == (0, digests[2])
    assert f"{digests[2][:12]} is its shadow" in out
    assert drive("shadow", "made", "--end")[0] == 0
    assert store.traffic("made").shadow is None


@pytest.mark.parametrize("verb", ["canary", "shadow"])
def test_a_bundle_or_the_end_but_not_both_and_not_neither(drive, digests, verb):
    for arguments in ((), (digests[1], "--end")):
        status, _, err = drive(verb, "made", *arguments)
        assert status == 2
        assert "allowed: a bundle, or --end" in err


def test_a_canary_needs_its_share(drive, digests):
    status, _, err = drive("canary", "made", digests[1])
    assert status == 2
    assert "allowed: a share of the requests" in err


def test_one_rollback_ends_the_canary_and_says_so_and_history_tells_it_all(drive, digests):
    drive("promote", digests[1], "made")
    drive("canary", "made", digests[2], "--share", 0.5)
    status, out, _ = drive("rollback", "made")
    ended = f"the canary {digests[2][:12]} is ended: made is {digests[1]} again\n"
    assert (status, out) == (0, ended)
    assert drive("rollback", "made")[1] == f"made is {digests[0]} again\n"
    status, out, _ = drive("history", "made", "--json")
    told = [(line["did"], line["bundle"]) for line in map(json.loads, out.splitlines())]
    assert (status, told) == (
        0,
        [
            ("promoted", digests[0]),
            ("promoted", digests[1]),
            ("canary", digests[2]),
            ("canary ended", digests[2]),
            ("rolled back", digests[0]),
        ],
    )
    _, out, _ = drive("history", "made")
    assert len(out.splitlines()) == 6
    assert out.splitlines()[-1].startswith(f"made: {digests[0][:12]} answers since ")


def test_an_alias_that_is_none_suggests_the_nearest(drive, digests):
    for arguments in (
        ("canary", "maed", digests[1], "--share", 0.1),
        ("shadow", "maed", digests[1]),
        ("history", "maed"),
    ):
        status, _, err = drive(*arguments)
        assert status == 2
        assert "Did you mean 'made'" in err


# -- under load ------------------------------------------------------------------------------------


class Load:
    """Clients that ask all the time, and what they were told.

    Attributes:
        answers: how many answers each version gave since :meth:`since`.
        wrong: whatever was no answer, or not the named version's own.
    """

    def __init__(self, url: str, factors: dict[str, float], clients: int = 3) -> None:
        self.answers: Counter[str] = Counter()
        self.wrong: list[Any] = []
        self._address = url.removeprefix("http://")
        self._factors = factors
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(clients)]

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=10)
        while not self._end.is_set():
            number += 1
            try:
                connection.request("POST", "/predict/made", json.dumps({"x": number % 1000}))
                reply = connection.getresponse()
                body = json.load(reply)
                version, score = body["version"], body["predictions"][0]["score"]
            except Exception as error:
                self.wrong.append(error)
                return
            if reply.status != 200 or score != self._factors[version] * (number % 1000):
                self.wrong.append((reply.status, body))
            self.answers[version] += 1
            time.sleep(0.002)
        connection.close()

    def since(self) -> None:
        """Forget what was answered until now."""
        self.answers = Counter()

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and not self.wrong and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (self.wrong, bool(condition())) == ([], True)

    def settle(self, *versions: str) -> None:
        """Wait until exactly these versions answer, on every connection."""

        def settled() -> bool:
            self.since()
            time.sleep(0.4)
            return set(self.answers) == set(versions)

        self.until(settled)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


@pytest.mark.slow
def test_under_load_no_move_of_an_alias_fails_a_request_or_mixes_versions(
    drive, store, digests, served, tmp_path
):
    factors = dict(zip((digest[:12] for digest in digests), (1.0, 2.0, 3.0), strict=True))
    first, second, third = factors

    def asked(version: str) -> float:
        return metrics(url)[
            f'drivetrain_requests_total{{model="made",version="{version}",route="rows",code="200"}}'
        ]

    def roles() -> dict[str, str]:
        found = [re.findall(r'(version|role)="(\w+)"', name) for name in metrics(url)
                 if name.startswith("drivetrain_model_info")]  # fmt: skip
        return {dict(pairs)["version"]: dict(pairs)["role"] for pairs in found}

    settings = {
        "store": store.root,
        "serve.port": 0,
        "serve.workers": 2,
        "serve.feedback": tmp_path / "feedback",
    }
    options = [f"--set={key}={value}" for key, value in settings.items()]
    with served("made", *options) as url, Load(url, factors) as load:
        load.settle(first)
        drive("canary", "made", digests[1], "--share", 0.2)
        load.settle(first, second)
        assert roles() == {first: "stable", second: "canary"}
        load.since()
        load.until(lambda: load.answers.total() >= 600)
        assert load.answers[second] / load.answers.total() == pytest.approx(0.2, abs=0.03)

        drive("shadow", "made", digests[2])
        heard = f'drivetrain_shadow_requests_total{{model="made",version="{third}",outcome='
        load.until(lambda: metrics(url).get(f'{heard}"answered"}}', 0) > 100)
        assert roles() == {first: "stable", second: "canary", third: "shadow"}
        assert metrics(url)[f'{heard}"failed"}}'] == 0
        assert third not in load.answers

        drive("promote", digests[1], "made")
        load.settle(second)
        load.until(lambda: roles() == {second: "stable", third: "shadow"})
        before = asked(first), asked(second)
        load.since()
        load.until(lambda: load.answers.total() >= 100)
        time.sleep(0.5)  # until the other worker has told its counts
        after = asked(first), asked(second)
        assert after[0] == before[0]
        assert after[1] >= before[1] + 100

        drive("rollback", "made")
        load.settle(first)
        drive("canary", "made", digests[1], "--share", 0.5)
        load.settle(first, second)
        drive("rollback", "made")
        load.settle(first)
        load.until(lambda: roles() == {first: "stable", third: "shadow"})
        failures = [
            name for name in metrics(url) if 'code="5' in name or "reload_failures_t" in name
        ]
        assert failures == []
    assert load.wrong == []
    kept = list((tmp_path / "feedback" / "made").glob("date=*/*.parquet"))
    rows = [row for file in kept for row in pq.read_table(file, columns=COLUMNS).to_pylist()]
    assert {(row["version"], row["role"]) for row in rows} >= {
        (first, "stable"),
        (second, "canary"),
    }
    assert third not in {row["version"] for row in rows}
    assert all(row["prediction.score"] == factors[row["version"]] * row["x"] for row in rows)
