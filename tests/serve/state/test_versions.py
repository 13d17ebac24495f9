"""Versions of an alias share what was observed; what was safe is there when the server is back."""

import errno
import os
import subprocess
import sys

import pytest
from moving import Alias, ended, follow
from waiting import wait_until

from drivetrain.core.window import Window
from drivetrain.serve.state.states import Keeping


@pytest.fixture
def bundles(cards, tmp_path):
    """Two of the same windows, and one with another window in the place of one of these."""
    other = cards.columns | {"mean": Window("amount", by="card", stat="mean", over="2h")}
    return {
        "one": cards.write(tmp_path / "one"),
        "two": cards.write(tmp_path / "two", weight=2.0),
        "other": cards.write(tmp_path / "other", columns=other),
    }


def asked(client, cards):
    row = {"distance": 1.0, "at": cards.start + 1_000_000, "card": "a", "shop": "s"}
    return client.post("/predict/cards", row).json["predictions"][0]


def observe(client, cards, times=1):
    row = {"card": "a", "shop": "s", "amount": 4.0}
    rows = [row | {"at": cards.start + n, "settled": cards.start + n} for n in range(times)]
    reply = client.post("/observe/cards", {"rows": rows})
    assert reply.status == 200, reply.body


def test_a_hot_reload_keeps_what_was_observed(serve, cards, bundles, tmp_path):
    alias = Alias("cards", stable=bundles["one"])
    client = follow(serve, alias, state=Keeping(place=str(tmp_path / "state")))
    observe(client, cards, 3)
    before = asked(client, cards)
    alias.move(client, stable=bundles["two"])
    after = asked(client, cards)
    assert after == before | {"far": 2.0}
    assert client.metric('drivetrain_window_tracks_begun_total{model="cards"}') == 4


def test_a_canary_and_a_shadow_share_what_was_observed(serve, cards, bundles, tmp_path):
    alias = Alias("cards", stable=bundles["one"])
    client = follow(serve, alias, feedback=tmp_path / "feedback")
    observe(client, cards, 2)
    alias.move(
        client, stable=bundles["one"], canary=bundles["two"], share=1.0, shadow=bundles["other"]
    )
    observe(client, cards)
    found = asked(client, cards)
    assert (found["far"], found["got_hourly"]) == (2.0, 3)
    asked_shadow = (
        "drivetrain_shadow_requests_total"
        f'{{model="cards",version="{bundles["other"].digest[:12]}",outcome="answered"}}'
    )
    wait_until(lambda: asked(client, cards) and client.metric(asked_shadow), 60.0)
    for name in ("got_hourly", "got_last", "got_since"):
        differs = (
            "drivetrain_shadow_difference_sum"
            f'{{model="cards",version="{bundles["other"].digest[:12]}",'
            f'against="{bundles["two"].digest[:12]}",output="{name}"}}'
        )
        assert client.metric(differs) == 0.0


def test_a_new_window_begins_empty_says_so_and_the_way_back_finds_the_old(
    serve, cards, bundles, caplog
):
    alias = Alias("cards", stable=bundles["one"])
    client = follow(serve, alias)
    observe(client, cards, 2)
    alias.move(client, stable=bundles["other"])
    found = asked(client, cards)
    assert (found["got_hourly"], found["got_shops"]) == (2, 1)
    assert found["got_mean"] is None
    assert "the windows over amount by card begin empty" in caplog.text
    observe(client, cards, 1)
    assert asked(client, cards)["got_mean"] == 4.0
    alias.move(client, stable=bundles["one"])
    found = asked(client, cards)
    assert (found["got_hourly"], found["got_mean"], found["got_last"]) == (3, 4.0, 4.0)


def test_what_was_safe_is_there_when_the_server_is_back(serve, cards, bundles, tmp_path):
    alias = Alias("cards", stable=bundles["one"])
    state = Keeping(place=str(tmp_path / "state"))
    client = follow(serve, alias, state=state)
    observe(client, cards, 2)
    alias.move(client, stable=bundles["other"])
    observe(client, cards, 3)
    before = asked(client, cards)
    ended(client)
    client = follow(serve, alias, state=state)
    assert asked(client, cards) == before
    alias.move(client, stable=bundles["one"])
    assert asked(client, cards)["got_hourly"] == 5


def test_a_directory_belongs_to_one_server(serve, cards, bundles, tmp_path):
    state = Keeping(place=str(tmp_path / "state"))
    serve(models={"cards": bundles["one"].path}, state=state)
    with pytest.raises(ValueError, match="found another server that uses it"):
        serve(models={"cards": bundles["one"].path}, state=state)


def test_a_full_disk_refuses_observations_and_predictions_go_on(
    serve, cards, bundles, tmp_path, monkeypatch
):
    client = serve(
        models={"cards": bundles["one"].path}, state=Keeping(place=str(tmp_path / "state"))
    )
    observe(client, cards)
    real = os.pwrite

    def full(file, data, at):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    row = {"card": "a", "at": cards.start}
    reply = client.post("/observe/cards", row)
    assert reply.status == 503
    assert "No space left on device" in reply.json["error"]
    assert reply.headers["retry-after"] == "1"
    assert asked(client, cards)["got_hourly"] == 1
    monkeypatch.setattr(os, "pwrite", real)
    assert client.post("/observe/cards", row).json["observed"] == 1
    assert asked(client, cards)["got_hourly"] == 2


def test_a_damaged_log_keeps_the_server_from_starting(serve, cards, bundles, tmp_path):
    state = Keeping(place=str(tmp_path / "state"))
    client = serve(models={"cards": bundles["one"].path}, state=state)
    for _ in range(3):
        observe(client, cards)
    ended(client)
    (log,) = (tmp_path / "state" / "cards").glob("*.log")
    content = bytearray(log.read_bytes())
    content[80] ^= 1
    log.write_bytes(content)
    with pytest.raises(ValueError, match="damaged record at byte"):
        serve(models={"cards": bundles["one"].path}, state=state)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers share a port on Linux")
def test_embedded_state_belongs_to_one_process(windowed, tmp_path):
    code = (
        "import sys; from pathlib import Path; from drivetrain.serve.server import Server; "
        "Server({'cards': Path(sys.argv[1])}, port=0, workers=2).run()"
    )
    command = [sys.executable, "-c", code, windowed.path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "[serve] workers = 1, or state = 'redis://" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"missing": "guess"}, "state_missing: found 'guess', allowed: refuse or empty"),
        ({"bytes": 0}, "state_bytes: found 0"),
        ({"place": "http://here"}, "[serve] state: found 'http://here'"),
    ],
)
def test_a_site_says_where_state_is_kept_or_it_is_an_error(options, says):
    with pytest.raises(ValueError) as error:
        Keeping(**options)
    assert says in str(error.value)
