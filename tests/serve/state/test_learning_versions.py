"""Every version of an alias is what its graph and the events of all of them give."""

import films
from learnt import answers, observe, offline, same, served
from moving import Alias, ended, follow
from waiting import wait_until

from drivetrain.serve.state import learners, ring
from drivetrain.serve.state.states import Keeping


def test_every_version_is_what_its_graph_and_all_events_give(serve, one, two, tmp_path):
    """A new one takes over what was observed, and the way back finds what it has missed."""
    rows = films.rows(90, seed=7, users=50, films=33)
    alias, state = Alias("films", stable=one), Keeping(place=str(tmp_path))
    client = follow(serve, alias, state=state)
    observe(client, rows[:30])
    alias.move(client, stable=two)
    assert same(served(client), answers(two, offline(two, rows[:30])))
    observe(client, rows[30:60])
    assert same(served(client), answers(two, offline(two, rows[:60])))
    ended(client)
    client = follow(serve, alias, state=state)
    assert same(served(client), answers(two, offline(two, rows[:60])))
    alias.move(client, stable=one)
    assert same(served(client), answers(one, offline(one, rows[:60])))
    observe(client, rows[60:])
    assert same(served(client), answers(one, offline(one, rows)))
    ended(client)
    client = follow(serve, alias, state=state)
    assert same(served(client), answers(one, offline(one, rows)))


def test_a_canary_and_a_shadow_learn_beside_the_stable_version(serve, one, two, tmp_path):
    rows = films.rows(40, seed=8)
    alias = Alias("films", stable=one)
    client = follow(serve, alias, state=Keeping(place=str(tmp_path)))
    observe(client, rows[:20])
    alias.move(client, stable=one, canary=two, share=1.0)
    observe(client, rows[20:])
    assert same(served(client), answers(two, offline(two, rows)))
    version = one.digest[:12]
    (asked,) = client.get("/v2/models/films").json["inputs"]
    body = {"inputs": [{**asked, "shape": [1], "data": ["user 1"]}]}
    reply = client.post(f"/v2/models/films/versions/{version}/infer", body).json
    ((items, _),) = answers(one, offline(one, rows), ["user 1"])
    assert next(o["data"] for o in reply["outputs"] if o["name"] == "items") == items
    alias.move(client, stable=one, shadow=two)
    series = (
        "drivetrain_shadow_requests_total"
        f'{{model="films",version="{two.digest[:12]}",outcome="answered"}} '
    )

    def asked_too():
        served(client, ["user 1"])
        lines = client.get("/metrics").body.decode().splitlines()
        return any(line.startswith(series) and line != f"{series}0" for line in lines)

    wait_until(asked_too, 60.0)
    held = client.server._states.of("films").memory.learners.held
    wait_until(lambda: not any(each.awake.published._now.readers for each in held.values()), 60.0)


def test_what_is_gone_of_the_events_is_said(one, two, monkeypatch, caplog, serve):
    monkeypatch.setattr(ring, "KEPT", 20)
    monkeypatch.setattr(learners, "_TAKEN_OVER", 15)
    monkeypatch.setattr(ring.Ring.trim, "__defaults__", (20,))
    rows = films.rows(200, seed=9)
    alias = Alias("films", stable=one)
    client = follow(serve, alias)
    observe(client, rows[:10])
    alias.move(client, stable=two)
    assert same(served(client), answers(two, offline(two, rows[:10])))
    for start in range(10, 200, 10):
        observe(client, rows[start : start + 10])
    alias.move(client, stable=one)
    assert "events that are gone" in caplog.text
    memory = client.server._states.of("films").memory
    kept = memory.learners._ring(next(iter(memory.learners.held.values())).schema).within(0, None)
    assert 20 <= len(kept) <= 25
    expected = offline(one, rows[:10])
    for event in kept:
        expected.tell(event)
    assert same(served(client), answers(one, expected))
