"""Windows and what is learnt of the same events are seen together."""

import asyncio
import json

import films
import numpy as np
import pytest
from learnt import events_of, graph_of, observe

from drivetrain.core.learner import Learner
from drivetrain.core.window import Window
from drivetrain.serve.execution.loading import Loader
from drivetrain.serve.execution.models import Model
from drivetrain.serve.state import embedded
from drivetrain.serve.state.embedded import Embedded
from drivetrain.serve.state.posts import Limits
from drivetrain.serve.telemetry.metrics import Metrics


@pytest.fixture(scope="session")
def windowed(tmp_path_factory):
    """A factorization that learns, of rows with a window as well."""
    recent = {"seen": Window(by="user", stat="count", over="100d")}
    return films.write(tmp_path_factory.mktemp("films") / "windowed", recent=recent)


def test_windows_and_what_was_learnt_are_of_one_moment(windowed, tmp_path, monkeypatch):
    """A post that takes many turns of the loop is seen whole or not at all."""
    monkeypatch.setattr(embedded, "_SLICE_SECONDS", 0.0)
    graph = graph_of(windowed)
    made = films.rows(60, seed=10)
    start = 1_700_000_600_000_000
    rows = [{**row, "user": "new", "at": start + n} for n, row in enumerate(made)]

    async def post():
        state = Embedded("films", tmp_path, 1 << 30, Metrics())
        model = Model("films", windowed, Loader())
        digest = state.prepare(model.learning)
        state.keep(model.filling.kept, Limits(8192), {digest: model.learning})
        model.lookup = state.lookup(model.filling)
        model.live = state.live(digest, model.learning, model.inputs)
        given = [np.array([{"user": "new"}.get(name, start + 100)]) for name in model.inputs.names]
        given = [array.astype(object) if array.dtype.kind == "U" else array for array in given]
        outcomes, moments = [], []
        for first in range(0, 60, 20):
            body = json.dumps({"rows": rows[first : first + 20]}).encode()
            state.observe(state.reader.read(body), outcomes.append)
            while len(outcomes) <= first // 20:
                await asyncio.sleep(0)
                windows = []
                model.lookup(given, windows.extend)
                moment = model.live(given)
                new = next(a for n, a in moment.rows.items() if n.endswith("learner/user"))
                items = next(a for n, a in moment.whole.items() if n.endswith("learner/items"))
                moments.append((int(windows[0][0]), new.tobytes(), items.tobytes()))
                moment.release()
        await state.close()
        return outcomes, moments

    outcomes, moments = asyncio.run(post())
    assert all(outcome.durable for outcome in outcomes)
    learner, expected = Learner.of(graph), {}
    for count in range(0, 61, 20):
        for event in events_of(rows[max(count - 20, 0) : count]):
            learner.tell(event)
        (user,) = [a for n, a in learner.rows(np.array(["new"])).items() if n.endswith("user")]
        (items,) = [a for n, a in learner.tensors().items() if n.endswith("items")]
        expected[count] = (count, user.tobytes(), items.tobytes())
    assert {moment[0] for moment in moments} == {0, 20, 40, 60}
    for moment in moments:
        assert moment == expected[moment[0]], moment[0]
    assert len(moments) > 30, "it took turns"


def test_windows_are_served_beside_what_learns(serve, windowed):
    client = serve(models={"films": windowed.path})
    metadata = client.get("/v2/models/films").json
    assert {tensor["name"] for tensor in metadata["inputs"]} == {"user", "at"}
    page = client.get("/openapi.json").json
    observed = page["components"]["schemas"]["films.Observation"]
    assert set(observed["properties"]) == {"user", "film", "at"}
    needs = [sorted(each["required"]) for each in observed["anyOf"]]
    assert sorted(needs) == [["at", "user"], ["film", "user"]]
    row = {"user": "user 1", "film": "film 2", "at": 1_700_000_700_000_000}
    assert observe(client, [row])["observed"] == 2
    assert client.post("/predict/films", {"user": "user 1", "at": row["at"] + 1}).status == 200
