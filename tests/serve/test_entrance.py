"""The targets of an alias close while the queue of their version is full, and tell who asked."""

from types import SimpleNamespace

from drivetrain.serve.entrance import Entrance
from drivetrain.serve.telemetry.metrics import Metrics


class Version:
    def __init__(self, version):
        self.name, self.version = "tiny", version


def made(access=None):
    """An entrance, its service, and two versions with a route each."""
    engine = SimpleNamespace(on_full=None)
    service = SimpleNamespace(engine=engine, metrics=Metrics(), access=access)
    models = [Version("one"), Version("two")]
    routes = [SimpleNamespace(model=model, name="rows") for model in models]
    return Entrance(service, None, frozenset()), service, models, routes


def test_only_what_asks_the_full_version_is_closed_until_there_is_room():
    entrance, service, (one, two), (first, second) = made()
    entrance.hang("tiny", {b"/a": first, b"/b": first, b"/c": second})
    service.engine.on_full(one, "the queue is full.")
    assert set(entrance.gates.closed) == {b"/a", b"/b"}
    assert str(entrance.gates.closed[b"/a"].error) == "the queue is full."
    service.engine.on_full(two, "the queue is full.")
    service.engine.on_full(one, "")
    assert set(entrance.gates.closed) == {b"/c"}


def test_a_gate_stays_closed_over_a_change_that_leaves_its_version_and_goes_with_it():
    entrance, service, (one, _), (first, second) = made()
    entrance.hang("tiny", {b"/a": first})
    service.engine.on_full(one, "full.")
    entrance.hang("tiny", {b"/a": first, b"/b": second})
    assert set(entrance.gates.closed) == {b"/a"}
    entrance.hang("tiny", {b"/a": second})
    assert entrance.gates.closed == {}
    service.engine.on_full(one, "full.")
    assert entrance.gates.closed == {}


def test_who_is_sent_away_is_counted_with_the_version_and_logged():
    lines = []
    entrance, service, (one, _), (first, _) = made(lines.append)
    entrance.hang("tiny", {b"/a": first})
    service.engine.on_full(one, "full.")
    client = SimpleNamespace(get_extra_info=lambda name: ("10.0.0.7", 5))
    entrance.gates.closed[b"/a"].tell(client)
    assert service.metrics.requests.of("tiny", "one", "rows", "503").value == 1
    (line,) = lines
    said = (line["status"], line["method"], line["target"], line["client"], line["version"])
    assert said == (503, "POST", "/a", "10.0.0.7:5", "one")
