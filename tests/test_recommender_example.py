"""The example of a recommender on real films: it runs, is served, and learns while it is."""

import http.client
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivetrain.core.bundle import Bundle
from drivetrain.declaration import load
from drivetrain.registry.registry import Registry
from drivetrain.serve.server import Server, running
from drivetrain.serve.state.states import Keeping

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "recommender.py"
RECBOLE = "recbole==1.2.1"
QUICKER = ("train.ranking.lists=800", "train.ranking.train.epochs=1", "probes.1.p50_ms=10000.0")
PERSON = {"user": 196, "age": 49, "gender": "M", "job": "writer"}
"""Somebody of the data."""
STRANGER = {"user": 7000, "age": 30, "gender": "F", "job": "artist"}
BEFORE, LATER = "1998-05-01T00:00:00", "1998-05-01T00:00:10"


@pytest.fixture(scope="module")
def bundle(environment: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What one command makes of the example, with fewer lists to rank by."""
    folder = tmp_path_factory.mktemp("films")
    python = environment("movies", "--no-deps", RECBOLE)
    site = next(python.parents[1].glob("lib/*/site-packages"))
    paths = (ROOT, sysconfig.get_path("purelib"), site)
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    rooms = [f"--set=store={folder / 'store'}", f"--set=work={folder / 'work'}"]
    command = [sys.executable, "-W", "error", "-m", "drivetrain.cli", "run", "--json"]
    done = subprocess.run(
        [*command, str(EXAMPLE), *rooms, *(f"--set={setting}" for setting in QUICKER)],
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["bundle"]
    with pytest.MonkeyPatch.context() as patch:  # what it declares is what its files have
        patch.setenv("XDG_CACHE_HOME", variables["XDG_CACHE_HOME"])
        system = load(EXAMPLE)
        system.check(system.events.schema)
    return Registry(folder / "store").promote(found, "films")


def answered(url: str, path: str, body: Any) -> Any:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    said = json.loads(answer.read())
    connection.close()
    assert answer.status == 200, said
    return said


def recommended(url: str, who: dict[str, Any], k: int | None, at: str = BEFORE) -> dict[str, Any]:
    row = {**who, "at": at, "k": k}
    (found,) = answered(url, "/predict/films", {"rows": [row]})["predictions"]
    return found


@pytest.mark.slow
def test_it_is_as_good_as_it_says_and_answers_whom_it_knows_and_strangers(bundle: Bundle) -> None:
    assert bundle.manifest.metrics["test/recall@20"] > 0.12
    assert set(bundle.manifest.windows["columns"]) == {"recent", "since", "watched"}
    with running(Server({"films": bundle.path}, port=0)) as url:
        found = recommended(url, PERSON, 5)
        assert len({*found["items"][:5]}) == 5
        assert found["items"][5:] == [None] * 15
        assert None not in found["scores"][:5]
        assert found["scores"][5:] == [None] * 15
        assert {*found["reasons"][:5]} <= {"ease", "als"}
        assert found["propensities"] == [1.0] * 5 + [None] * 15
        whole = recommended(url, PERSON, None)
        assert whole["items"][:5] == found["items"][:5]
        assert None not in whole["items"]
        stranger = recommended(url, STRANGER, 3)
        assert stranger["reasons"][:3] == ["popular"] * 3
        nobody = recommended(url, dict.fromkeys(PERSON), 3)
        assert None not in nobody["items"][:3]


@pytest.mark.slow
def test_v2_answers_what_rows_do(bundle: Bundle) -> None:
    with running(Server({"films": bundle.path}, port=0)) as url:
        due = recommended(url, PERSON, 4)
        row = {**PERSON, "at": 893_980_800_000_000, "k": 4}  # the same moment
        types = {str: "BYTES", int: "INT64"}
        inputs = [
            {"name": n, "shape": [1], "datatype": types[type(v)], "data": [v]}
            for n, v in row.items()
        ]
        ages = next(each for each in inputs if each["name"] == "age")
        ages["datatype"] = next(field.v2 for field in bundle.manifest.inputs if field.name == "age")
        said = answered(url, "/v2/models/films/infer", {"inputs": inputs})
        found = {output["name"]: output["data"] for output in said["outputs"]}
        assert found["items"][:4] == due["items"][:4]
        assert found["reasons"][:4] == due["reasons"][:4]


@pytest.mark.slow
def test_the_next_answer_knows_what_the_server_was_told(bundle: Bundle, tmp_path: Path) -> None:
    server = Server({"films": bundle.path}, port=0, state=Keeping(place=str(tmp_path / "state")))
    with running(server) as url:
        before = recommended(url, STRANGER, 20)
        film = before["items"][0]
        told = {"user": STRANGER["user"], "item": film, "at": BEFORE}
        answered(url, "/observe/films", {"rows": [told]})
        after = recommended(url, STRANGER, 20, LATER)
        assert film not in after["items"], "it was had"
        assert after["items"] != before["items"]
        assert "popular" not in after["reasons"]
