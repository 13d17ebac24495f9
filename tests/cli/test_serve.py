"""`drivetrain serve` and `watch`, in processes of their own."""

import json
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from drivetrain.cli import main
from drivetrain.registry.registry import Registry

Drive = Callable[..., tuple[int, str, str]]
Child = Callable[..., "subprocess.CompletedProcess[str]"]
Served = Callable[..., AbstractContextManager[str]]


@pytest.mark.slow
def test_serve_answers_and_watch_looks_once(
    ran: Any, here: Any, child: Child, served: Served
) -> None:
    main(["promote", ran.bundle.digest, "made", *here])
    rows = [{"amount": 40.0, "age": 33, "shop": "north", "note": None}] * 3
    with served("made", *here) as url:
        request = urllib.request.Request(
            f"{url}/predict/made",
            json.dumps({"rows": rows}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            predictions = json.load(answer)["predictions"]
        expected = ran.bundle.predict(rows)["bad"]
        assert [p["bad"] for p in predictions] == pytest.approx(list(expected), abs=0)
        looked = child("watch", "made", "--once", "--json", "--url", url, *here)
    assert looked.returncode == 0, looked.stderr
    assert "made" in looked.stdout
    for line in looked.stdout.splitlines():
        json.loads(line)
    assert "Traceback" not in looked.stderr


@pytest.mark.slow
def test_a_bundle_is_served_by_its_digest_too(ran: Any, here: Any, served: Served) -> None:
    with (
        served(ran.bundle.digest, *here) as url,
        urllib.request.urlopen(f"{url}/v2/models/{ran.bundle.digest}", timeout=30) as answer,
    ):
        assert json.load(answer)["name"] == ran.bundle.digest
    assert Registry(Path(here[1]).parent / "store").aliases() == {}
