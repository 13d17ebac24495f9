"""What a served factorization learns: seen by the next request, the same after a restart, and in
every version what its graph and the events give."""

import asyncio
import json
import threading

import films
import numpy as np
import pytest
from waiting import wait_until

from drivetrain.core.learner import NEW, Learner
from drivetrain.core.window import Window
from drivetrain.events.follow.telling import Server as Told
from drivetrain.serve.execution.live import Learning
from drivetrain.serve.execution.models import Artefact, Model, Traffic
from drivetrain.serve.execution.weights import Weights
from drivetrain.serve.state import embedded, learners, ring
from drivetrain.serve.state.embedded import Embedded
from drivetrain.serve.state.journal import Journal
from drivetrain.serve.state.memory import Memory
from drivetrain.serve.state.posts import Limits
from drivetrain.serve.state.replay import replay
from drivetrain.serve.state.states import Keeping
from drivetrain.serve.telemetry.metrics import Metrics

SEVERAL = [f"user {n}" for n in (0, 1, 2, 3)] + ["new", "nobody"]


@pytest.fixture(scope="session")
def one(tmp_path_factory):
    """A factorization that learns."""
    return films.write(tmp_path_factory.mktemp("films") / "one")


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """Another training of it."""
    return films.write(tmp_path_factory.mktemp("films") / "two", seed=1)


def graph_of(bundle):
    return bundle.read("model.onnx")


def events_of(rows):
    return [(row["user"], row["film"]) for row in rows]


def offline(bundle, rows):
    """What a graph learns of rows in their order, without a server."""
    learner = Learner.of(graph_of(bundle))
    for event in events_of(rows):
        learner.tell(event)
    return learner


def answers(bundle, learner, users=SEVERAL):
    """What the graph answers with what a learner gives, user by user."""
    found = []
    for user in users:
        asked = np.array([user], object)
        fed = {"user": asked, **learner.rows(asked), **learner.tensors()}
        items, scores = bundle.graph.session(1).raw(fed, ["items", "scores"])
        found.append((items[0].tolist(), [s if s == s else None for s in scores[0].tolist()]))
    return found


def served(client, users=SEVERAL, alias="films"):
    found = []
    for user in users:
        (row,) = client.post(f"/predict/{alias}", {"user": user}).json["predictions"]
        found.append((row["items"], row["scores"]))
    return found


def same(found, expected):
    """Whether answers are the same, scores to the last bit of a float32."""
    for (items, scores), (other, due) in zip(found, expected, strict=True):
        pairs = zip(scores, due, strict=True)
        if items != other or any(a != b and np.float32(a) != np.float32(b) for a, b in pairs):
            return False
    return True


def observe(client, rows, **more):
    reply = client.post("/observe/films", {"rows": rows, **more})
    assert reply.status == 200, reply.body
    return reply.json


class Alias:
    """An alias that a test moves."""

    def __init__(self, **bundles):
        self.traffic = self.of(**bundles)

    @staticmethod
    def of(share=0.0, **bundles):
        found = {role: Artefact(b.digest, b.path) for role, b in bundles.items()}
        return Traffic(share=share, **found)

    def move(self, client, **traffic):
        self.traffic = self.of(**traffic)
        digests = {artefact.digest[:12] for artefact in self.traffic.artefacts}
        wait_until(lambda: set(client.get("/v2/models/films").json["versions"]) == digests, 60.0)

    def __call__(self):
        return self.traffic


def test_the_very_next_request_sees_an_event(serve, one):
    client = serve(models={"films": one.path})
    trained = served(client)
    assert same(trained, answers(one, offline(one, [])))
    assert trained[-2] == trained[-1], "who is not known is answered with what is popular"
    told = []
    for row in [
        {"user": "user 1", "film": "film 4"},
        {"user": "new", "film": "film 7"},
        {"user": "new", "film": "one of its own"},
        *({"user": f"user {n}", "film": "one of its own"} for n in (0, 2)),
    ]:
        told.append(row)
        assert observe(client, [row])["observed"] == 1
        found = served(client)
        assert same(found, answers(one, offline(one, told))), row
    assert all("one of its own" not in found[n][0] for n in (0, 2, 4)), "they had it"
    assert "film 7" not in found[4][0]
    assert found[4] != trained[4]
    whole = client.post("/predict/films", {"rows": [{"user": user} for user in SEVERAL]}).json
    assert [row["items"] for row in whole["predictions"]] == [items for items, _ in found]


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
    for name, array in held.awake.published.hold().arrays.items():
        np.testing.assert_array_equal(array, learner.tensors()[name])


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


def ended(client):
    client.server.stop()

    def refused():
        try:
            client.get("/v2/health/live")
        except OSError:
            return True
        return False

    wait_until(refused, 60.0)


def test_what_comes_twice_or_in_another_order_or_means_nothing(serve, one):
    client = serve(models={"films": one.path})
    row = {"user": "new", "film": "film 3"}
    known = films.rows(1)[0]  # a pair of the training
    assert observe(client, [row], source="s/1", offset=5)["observed"] == 1
    assert observe(client, [row], source="s/1", offset=5)["ignored"] == 1
    assert observe(client, [row, known])["observed"] == 0
    assert observe(client, [{"user": None, "film": "film 3"}])["missing"] == 1
    assert observe(client, [{"user": "", "film": "film 1"}])["missing"] == 1
    for wrong, says in [
        ({"user": "new"}, "row 0: found columns user; allowed: all of film, user"),
        ({"user": 5, "film": "film 1"}, "row 0, column 'user': found 5"),
        ({"user": "new", "film": ["film 1"]}, "row 0, column 'film'"),
        ({"user": "new", "flim": "film 1"}, "Did you mean 'film'?"),
        (b'{"user": "new", "film": NaN}', "body: found no JSON"),
    ]:
        reply = client.post("/observe/films", wrong)
        assert reply.status == 400
        assert says in reply.json["error"]
    assert same(served(client), answers(one, offline(one, [row])))
    told = client.get("/observe/films").json
    assert (told["learner"]["learnt"], told["learner"]["missing"]) == (1, 2)
    assert told["positions"] == {"s/1": 5}


def test_places_for_new_items_run_out_and_the_rest_goes_on(serve, one):
    client = serve(models={"films": one.path})
    rows = [{"user": f"user {n}", "film": f"premiere {n}"} for n in range(8)]
    assert observe(client, rows)["observed"] == 5
    assert client.metric('drivetrain_learner_new_items{model="films"}') == 5
    assert client.metric('drivetrain_learner_refused{model="films"}') == 3
    assert client.metric('drivetrain_learner_events{model="films"}') == 5
    assert client.metric('drivetrain_learner_rolled_back{model="films"}') == 0
    assert client.metric('drivetrain_learner_bytes{model="films"}') > 0
    assert observe(client, [{"user": "new", "film": "film 1"}])["observed"] == 1
    assert client.metric('drivetrain_learner_new_users{model="films"}') == 1
    assert same(
        served(client), answers(one, offline(one, [*rows, {"user": "new", "film": "film 1"}]))
    )


def test_a_flood_of_one_user_holds_nobody_up(serve, one):
    client = serve(models={"films": one.path})
    flood = [{"user": "flood", "film": f"film {n % films.FILMS}"} for n in range(8000)]
    replies = []
    thread = threading.Thread(target=lambda: replies.append(observe(client, flood)))
    thread.start()
    statuses = []
    while thread.is_alive():
        statuses.append(client.post("/predict/films", {"user": "flood"}).status)
    thread.join()
    assert set(statuses) <= {200}
    assert replies[0]["observed"] >= films.FILMS
    assert same(served(client), answers(one, offline(one, flood)))


def test_poison_is_rolled_back_and_training_answers_again(serve, tmp_path):
    guarded = films.write(tmp_path / "guarded", guard=0.02, evidence=60)
    client = serve(models={"films": guarded.path})
    random = np.random.default_rng(1)
    rows = [
        {"user": f"user {random.integers(40)}", "film": f"film {random.integers(films.FILMS)}"}
        for _ in range(3000)
    ]
    learner = offline(guarded, rows)
    assert learner.rolled_back, "the made poison is poison"
    for start in range(0, len(rows), 250):
        observe(client, rows[start : start + 250])
    assert client.metric('drivetrain_learner_rolled_back{model="films"}') == 1
    auc, frozen = (
        client.metric(f'drivetrain_learner_{name}{{model="films"}}')
        for name in ("auc", "frozen_auc")
    )
    assert auc < frozen
    assert same(served(client), answers(guarded, learner))


# -- versions --------------------------------------------------------------------------------------


def follow(serve, alias, **options):
    return serve(models={"films": alias}, reload_seconds=0.05, **options)


def test_every_version_is_what_its_graph_and_all_events_give(serve, one, two, tmp_path):
    """A new one takes over what was observed, and the way back finds what it has missed."""
    rows = films.rows(90, seed=7, users=50, films=33)
    alias, state = Alias(stable=one), Keeping(place=str(tmp_path))
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
    alias = Alias(stable=one)
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
    alias = Alias(stable=one)
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


# -- one moment ------------------------------------------------------------------------------------


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
        model = Model("films", windowed, _loader())
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


# -- where it can be served ------------------------------------------------------------------------


def _loader(**options):
    from drivetrain.serve.execution.loading import Loader

    return Loader(**options)


def test_what_learns_is_one_process_own(one, serve):
    from drivetrain.serve.state.states import States

    model = Model("films", one, _loader())
    for keeping, processes, found in [
        (Keeping(), 2, "2 workers"),
        (Keeping(place="redis://127.0.0.1:1/0"), 1, "state in Redis"),
    ]:
        states = States(keeping, processes, Metrics(), 100)
        with pytest.raises(ValueError, match=f"learns while it is served and {found}, allowed"):
            states.check(model)


def test_mapped_weights_leave_live_tensors_live(one, tmp_path):
    weights = Weights(tmp_path, least=0)
    try:
        mapped, plain = (
            Model("films", one, _loader(weights=weights)),
            Model("films", one, _loader()),
        )
        learner = offline(one, films.rows(50, seed=11))
        asked = np.array(SEVERAL, object)
        fed = {**learner.rows(asked), **learner.tensors()}
        assert mapped._session.live == plain._session.live != frozenset()
        assert mapped.bound is None
        for live in ({}, fed):
            found = [model.run([[asked]], live)[1] for model in (mapped, plain)]
            for one_of, other in zip(*found, strict=True):
                np.testing.assert_array_equal(one_of, other)
        assert not np.array_equal(plain.run([[asked]], fed)[1][0], plain.run([[asked]])[1][0])
    finally:
        weights.close()


def test_a_placement_that_would_compile_live_tensors_in_is_refused(one):
    pytest.importorskip("openvino", reason="openvino is not installed")
    with pytest.raises(ValueError, match=r"does not take this graph: .*learner/items.* change"):
        _loader(place="openvino").session(one)
    assert _loader(place="auto").session(one).placement == "cpu"


def test_a_graph_without_a_learner_is_not_read_for_one(tiny, monkeypatch):
    read = []
    monkeypatch.setattr(type(tiny), "read", lambda self, name: read.append(name))
    assert Learning.of(tiny, frozenset({"some/table"})) is None
    assert not read


def test_new_items_are_all_that_is_copied_of_text(one):
    learner = Learner.of(graph_of(one))
    texts = {n: a for n, a in learner.tensors().items() if a.dtype == object}
    assert [name.endswith(NEW) for name in texts] == [True]


# -- a stream that follows -------------------------------------------------------------------------


def test_what_a_stream_tells_is_learnt(serve, one):
    client = serve(models={"films": one.path})
    server = Told(f"{client.url}/observe/films")
    try:
        positions, columns = server.state()
        assert (positions, columns) == ({}, ("user", "film"))
        rows = films.rows(30, seed=12)
        server.tell(rows[:20], "films/0", 20)
        server.tell(rows[:20], "films/0", 20)
        server.tell(rows[20:], "films/0", 30)
        assert server.state()[0] == {"films/0": 30}
    finally:
        server.close()
    assert same(served(client), answers(one, offline(one, rows)))
