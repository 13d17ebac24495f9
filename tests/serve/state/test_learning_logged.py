"""What was learnt is there again after a restart, and is what its log gives offline."""

import films
import numpy as np
import pytest
from learnt import answers, events_of, graph_of, observe, offline, same, served
from moving import ended

from drivetrain.core.learner import Learner
from drivetrain.serve.state import embedded
from drivetrain.serve.state.journal import Journal
from drivetrain.serve.state.memory import Memory
from drivetrain.serve.state.replay import replay
from drivetrain.serve.state.states import Keeping


def test_a_log_replayed_offline_gives_the_bits_that_are_served(serve, one, tmp_path):
    client = serve(models={"films": one.path}, state=Keeping(place=str(tmp_path)))
    rows = films.rows(400, seed=5, users=50, films=33)
    for start in range(0, len(rows), 7):
        observe(client, rows[start : start + 7])
    memory = client.server._states.of("films").memory
    ((digest, held),) = memory.learners.held.items()
    frames = []
    room = tmp_path / "films"
    for path in room.iterdir():
        if path.suffix != ".log":
            continue
        copy = tmp_path / "copy"
        copy.mkdir()
        (copy / path.name).write_bytes(path.read_bytes())
        journal = Journal(copy)
        frames = list(journal.frames())
        journal.close()
    logged = Memory()
    replay(logged, frames)
    events = logged.learners._ring(held.schema).within(0, None)
    assert events == events_of(rows)
    learner = Learner.of(graph_of(one))
    for event in events:
        learner.tell(event)
    assert learner.digest == digest
    assert learner.dump() == held.awake.learner.dump()
    assert same(served(client), answers(one, learner))
    shown = held.awake.published.hold().arrays
    for name, array in learner.tensors().items():
        np.testing.assert_array_equal(shown[name], array)


@pytest.mark.parametrize("log_events", [10**9, 40])
def test_a_restart_finds_what_was_learnt(serve, one, tmp_path, monkeypatch, log_events):
    monkeypatch.setattr(embedded, "_LOG_EVENTS", log_events)
    rows = films.rows(300, seed=6, users=50, films=33)
    for start in (0, 100, 200):
        client = serve(models={"films": one.path}, state=Keeping(place=str(tmp_path)))
        assert same(served(client), answers(one, offline(one, rows[:start])))
        for first in range(start, start + 100, 20):
            assert observe(client, rows[first : first + 20])["durable"]
        expected = offline(one, rows[: start + 100])
        assert same(served(client), answers(one, expected))
        ended(client)
    found = list((tmp_path / "films").glob("*.snapshot"))
    assert len(found) == (1 if log_events == 40 else 0)
