"""Managing a server: where it is allowed, what is loaded, what is told, in one process."""

import asyncio
import gc
import http.client
import json
import logging
import socket
import threading
import time
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from drivetrain.core.site import ServeSite, Site
from drivetrain.serve.application import Application
from drivetrain.serve.execution.engine import Batching
from drivetrain.serve.execution.models import Artefact, Model, Traffic
from drivetrain.serve.server import Server, running
from drivetrain.serve.workers.repository import Repository, agreement
from drivetrain.serving import server_of

ROW = {"carrier": "AA", "distance": 733.5, "hour": 7}
INDEX = "/v2/repository/index"


def at_management(client):
    """The same server, asked at its management port."""
    client.address = (client.server.host, client.server.management_port)
    return client


@contextmanager
def at_serving(client):
    """The same server, asked at its other port meanwhile."""
    client.address, before = (client.server.host, client.server.port), client.address
    yield
    client.address = before


@pytest.fixture
def managed(serve):
    return at_management(serve(management_port=0))


class Moving:
    """An alias that a test moves, damages or makes slow."""

    def __init__(self, bundle):
        self.bundle = bundle
        self.error = None

    def __call__(self):
        if self.error is not None:
            raise self.error
        return Traffic(stable=Artefact(self.bundle.digest, self.bundle.path))


def test_a_server_is_managed_at_no_port_unless_it_is_told_to_be(client):
    assert client.server.management_url is None
    for target in (
        "/v2/repository/models/tiny/load",
        "/v2/repository/models/tiny/unload",
        "/v2/systemsharedmemory/region/a/register",
        "/v2/systemsharedmemory/unregister",
        "/v2/cudasharedmemory/unregister",
    ):
        reply = client.post(target, {})
        assert reply.status == 403
        assert target in reply.json["error"]
        assert "[serve] management_port" in reply.json["error"]
    assert client.get("/v2/systemsharedmemory/status").status == 403
    assert client.post("/predict/tiny", ROW).status == 200


def test_the_management_port_serves_all_that_the_other_does(managed):
    server = managed.server
    assert server.management_url == f"http://127.0.0.1:{server.management_port}"
    assert server.management_port != server.port
    assert managed.post("/predict/tiny", ROW).status == 200
    extensions = managed.get("/v2").json["extensions"]
    assert {"model_repository", "system_shared_memory"} <= set(extensions)
    assert managed.get("/metrics").status == 200


def test_off_loopback_the_management_port_asks_for_the_token_too(serve):
    client = at_management(serve(management_port=0, token="secret"))
    reply = client.post("/v2/repository/models/tiny/unload", {})
    assert reply.status == 401
    bearer = {"Authorization": "Bearer secret"}
    assert client.post(INDEX, b"", headers=bearer).json[0]["state"] == "READY"


def test_the_index_tells_every_alias_and_those_that_are_ready_if_asked(serve, tiny):
    client = at_management(serve({"a": tiny.path, "b": tiny.path}, management_port=0))
    version = tiny.digest[:12]
    whole = [{"name": n, "version": version, "state": "READY", "reason": ""} for n in "ab"]
    assert client.post(INDEX, b"").json == whole
    assert client.post("/v2/repository/models/a/unload", b"").status == 200
    gone = {"name": "a", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
    assert client.post(INDEX, b"{}").json == [gone, whole[1]]
    assert client.post(INDEX, {"ready": True}).json == whole[1:]
    assert client.post(INDEX, {"ready": "yes"}).status == 400


def test_an_unloaded_alias_is_404_and_said_not_to_be_loaded_until_it_is_again(serve, tiny):
    client = at_management(serve({"a": tiny.path, "b": tiny.path}, management_port=0))
    assert client.post("/v2/repository/models/a/unload", {}).json == {}
    for method, target in (
        ("POST", "/predict/a"),
        ("POST", "/v2/models/a/infer"),
        ("POST", "/v1/models/a:predict"),
        ("GET", "/v2/models/a"),
        ("GET", "/v2/models/a/ready"),
        ("GET", f"/v2/models/a/versions/{tiny.digest[:12]}/stats"),
    ):
        reply = client.ask(method, target, b"{}" if method == "POST" else None)
        assert (reply.status, reply.json["error"]) == (404, "model 'a' is not loaded.")
    assert client.post("/predict/b", ROW).status == 200
    assert client.get("/v2/health/ready").status == 200  # what should be loaded is
    assert client.post("/v2/repository/models/a/unload", {}).status == 200
    assert client.post("/v2/repository/models/a/load", {}).json == {}
    assert client.post("/predict/a", ROW).status == 200


def test_a_load_asks_the_alias_again_at_once(serve, write_bundle, tmp_path):
    alias = Moving(write_bundle(tmp_path / "one"))
    client = at_management(serve({"tiny": alias}, management_port=0, reload_seconds=60))
    alias.bundle = write_bundle(tmp_path / "two", weight=0.25)
    assert client.post("/v2/repository/models/tiny/load", {}).status == 200
    assert client.post("/predict/tiny", ROW).json["version"] == alias.bundle.digest[:12]


def test_a_load_that_fails_says_why_and_leaves_everything_as_it_was(
    serve, write_bundle, tmp_path, caplog
):
    caplog.set_level(logging.CRITICAL, "drivetrain.serve")
    alias = Moving(write_bundle(tmp_path / "one"))
    client = at_management(serve({"tiny": alias}, management_port=0, reload_seconds=0.05))
    load, unload = (f"/v2/repository/models/tiny/{verb}" for verb in ("load", "unload"))
    alias.error = OSError("the store is away")
    reply = client.post(load, {})
    assert (reply.status, "worker 0: the store is away" in reply.json["error"]) == (500, True)
    assert client.post("/predict/tiny", ROW).status == 200
    (entry,) = client.post(INDEX, b"").json
    assert (entry["state"], entry["reason"]) == ("READY", "the store is away")

    assert client.post(unload, {}).status == 200
    reply = client.post(load, {})
    assert (reply.status, "the store is away" in reply.json["error"]) == (500, True)
    (entry,) = client.post(INDEX, b"").json
    assert (entry["state"], "the store is away" in entry["reason"]) == ("UNAVAILABLE", True)
    with at_serving(client):  # what went wrong inside is for those who manage
        (entry,) = client.post(INDEX, b"").json
        assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "unloaded")
        assert client.post("/predict/tiny", ROW).json["error"] == "model 'tiny' is not loaded."
    assert client.get("/v2/health/ready").status == 200
    alias.error = None
    time.sleep(0.15)
    assert client.post("/predict/tiny", ROW).status == 404  # nobody asked for it again
    assert client.post(load, {}).status == 200
    assert client.post(INDEX, b"").json[0]["reason"] == ""


@pytest.mark.parametrize(
    "parameters", [{"config": "{}"}, {"file:1/model.onnx": "AAAA"}, {"path": "/etc/passwd"}]
)
def test_a_load_takes_neither_bytes_nor_a_path_nor_a_configuration(managed, parameters):
    reply = managed.post("/v2/repository/models/tiny/load", {"parameters": parameters})
    assert reply.status == 400
    assert repr(next(iter(parameters))) in reply.json["error"]
    assert managed.post("/v2/repository/models/tiny/load", {"parameters": {}}).status == 200


@pytest.mark.parametrize("name", ["tny", "..", "%2e%2e%2fetc", "tiny%2f..", ""])
def test_only_the_servers_own_aliases_can_be_loaded(managed, name):
    reply = managed.post(f"/v2/repository/models/{name}/load", {})
    assert reply.status == 404
    assert "unknown" in reply.json["error"]


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"parameters": 3}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_none_is_400(managed, body):
    for verb in ("load", "unload"):
        assert managed.post(f"/v2/repository/models/tiny/{verb}", body).status == 400
    assert managed.post("/predict/tiny", ROW).status == 200


def test_an_unload_knows_no_parameter_but_that_of_its_clients(managed):
    target = "/v2/repository/models/tiny/unload"
    reply = managed.post(target, {"parameters": {"unload_dependants": True}})
    assert (reply.status, "'unload_dependents'" in reply.json["error"]) == (400, True)
    assert managed.post(target, {"parameters": {"unload_dependents": False}}).status == 200


def test_what_was_accepted_before_an_unload_is_answered_by_it(serve, tiny, monkeypatch):
    gate, running = threading.Event(), threading.Event()
    infer = Model.infer

    def slow(self, feeds):
        if len(feeds["hour"]) == 3:
            running.set()
            assert gate.wait(10)
        return infer(self, feeds)

    monkeypatch.setattr(Model, "infer", slow)
    client = at_management(
        serve({"tiny": tiny.path}, management_port=0, batching=Batching(inline_seconds=0))
    )
    with client.socket() as peer:
        body = json.dumps({"rows": [ROW] * 3}).encode()
        head = b"POST /predict/tiny HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        peer.sendall(head % len(body) + body)
        assert running.wait(10)
        more = json.dumps({"rows": [ROW] * 2}).encode()
        peer.sendall(head % len(more) + more)
        time.sleep(0.05)
        assert client.post("/v2/repository/models/tiny/unload", {}).status == 200
        assert client.post("/predict/tiny", ROW).status == 404
        gate.set()
        answers = b""
        while answers.count(b'"predictions"') < 2:
            answers += peer.recv(65536)
    assert answers.count(b"HTTP/1.1 200") == 2


def test_an_unloaded_version_is_given_back_without_a_collection(serve, tiny, monkeypatch):
    made = []
    init = Model.__init__

    def noted(self, *args, **options):
        init(self, *args, **options)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Model, "__init__", noted)
    client = at_management(serve({"tiny": tiny.path}, management_port=0))
    gc.disable()
    try:
        for _ in range(3):
            assert client.post("/predict/tiny", ROW).status == 200
            assert client.post("/v2/repository/models/tiny/unload", {}).status == 200
            assert made[-1]() is None
            assert client.post("/v2/repository/models/tiny/load", {}).status == 200
    finally:
        gc.enable()
    assert len(made) == 4


class Few:
    """Loads of which a test says what they hold."""

    names = ("a", "b", "c")

    def __init__(self, *loaded):
        self.releases = dict.fromkeys(loaded)
        self.reasons = {}


def test_a_server_is_ready_only_when_all_is_loaded_that_should_be():
    ledger = agreement(1)
    ledger.change(lambda state: {**state, "unloaded": {"b": "unloaded"}})
    able = Application.able.fget
    for loaded, lacking in ((("a", "c"), []), (("a",), ["c"]), ((), ["a", "c"])):
        repository = Repository(Few(*loaded), ledger)
        assert repository.lacking == lacking
        application = SimpleNamespace(ready=True, management=SimpleNamespace(repository=repository))
        assert able(application) == (not lacking)
    assert not able(SimpleNamespace(ready=False, management=None))
    ledger.close()


class Failing(Few):
    """Loads that fail."""

    async def load(self, name):
        return f"no {name} today"

    async def unload(self, name, reason):
        self.releases.pop(name, None)


def test_a_failure_is_told_to_who_asked_also_behind_a_change_that_others_made_since():
    async def main():
        ledger = agreement(2)
        one, two = (Repository(Failing("a", "b", "c"), ledger, seat) for seat in range(2))
        await one.begin()
        await two.begin()
        work = [one.load("a"), two.unload("b"), one.unload("c"), two.load("b")]
        found = await asyncio.gather(*work, return_exceptions=True)
        assert [getattr(error, "status", None) for error in found] == [500, None, None, 500]
        assert "worker 0: no a today; worker 1: no a today" in str(found[0])
        one.end()
        two.end()
        ledger.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_site_opens_the_management_port(tiny):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = server_of(Site(serve=ServeSite(port=0, management_port=port)), [str(tiny.path)])
    with running(server):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/v2/repository/models/tiny/load")
        assert connection.getresponse().status == 200
        connection.close()
    assert server_of(Site(serve=ServeSite(port=0)), [str(tiny.path)]).management_url is None


def test_cuda_memory_is_said_not_to_be_there_in_the_clients_own_terms(managed):
    assert managed.get("/v2/cudasharedmemory/status").json == []
    assert managed.post("/v2/cudasharedmemory/unregister", b"").json == {}
    handle = {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 4}
    reply = managed.post("/v2/cudasharedmemory/region/a/register", handle)
    assert (reply.status, "allowed: system memory" in reply.json["error"]) == (501, True)
    assert managed.get("/v2/cudasharedmemory/region/a/status").status == 400


def test_the_document_has_the_routes_that_manage_where_they_are_answered(managed):
    paths = managed.get("/openapi.json").json["paths"]
    load = "/v2/repository/models/tiny/load"
    memory = "/v2/systemsharedmemory/region/{region}/register"
    assert {load, memory, INDEX, "/v2/models/stats", "/v2/models/tiny/config"} <= paths.keys()
    assert b"/v2/repository/models/tiny/load" in managed.get("/docs").body
    for path, methods in paths.items():
        for method in methods:
            target = path.replace("{region}", "nope")
            reply = managed.ask(method.upper(), target, b"" if method == "post" else None)
            assert str(reply.status) in methods[method]["responses"], (path, reply)
    managed.address = (managed.server.host, managed.server.port)
    paths = managed.get("/openapi.json").json["paths"]
    assert INDEX in paths
    assert not {load, memory} & paths.keys()


def test_the_document_of_the_management_port_is_valid_openapi(managed):
    document = managed.get("/openapi.json").json
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


# -- what is told ----------------------------------------------------------------------------------


def test_a_models_configuration_says_what_its_metadata_does(client, tiny):
    config = client.get("/v2/models/tiny/config").json
    assert client.get(f"/v2/models/tiny/versions/{tiny.digest[:12]}/config").json == config
    metadata = client.get("/v2/models/tiny").json
    assert (config["name"], config["max_batch_size"]) == ("tiny", 8192)
    for part in ("input", "output"):
        for ours, theirs in zip(config[part], metadata[f"{part}s"], strict=True):
            datatype = {"TYPE_STRING": "BYTES"}.get(ours["data_type"], ours["data_type"][5:])
            assert (ours["name"], datatype) == (theirs["name"], theirs["datatype"])
            assert (ours["dims"], ours["reshape"]) == ([1], {"shape": []})


def test_statistics_count_what_was_answered_and_what_failed(serve, tiny):
    client = serve({"tiny": tiny.path, "idle": tiny.path})
    target = "/v2/models/tiny/stats"
    for rows in (1, 3, 3):
        assert client.post("/predict/tiny", {"rows": [ROW] * rows}).status == 200
    assert client.post("/predict/tiny", {"carrier": 7}).status == 400
    assert client.post("/predict/tiny", {**ROW, "hour": 99}).status == 400  # fails in the run
    (found,) = client.get(target).json["model_stats"]
    assert (found["name"], found["version"]) == ("tiny", tiny.digest[:12])
    assert (found["inference_count"], found["execution_count"]) == (7, 3)
    parts = found["inference_stats"]
    assert (parts["success"]["count"], parts["fail"]["count"]) == (3, 2)
    assert all(parts[name]["ns"] > 0 for name in parts if not name.startswith("cache"))
    sizes = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in found["batch_stats"]}
    assert sizes == {1: 1, 3: 2}
    everything = client.get("/v2/models/stats").json["model_stats"]
    assert [entry["name"] for entry in everything] == ["tiny", "idle"]
    assert everything[1]["inference_stats"]["success"] == {"count": 0, "ns": 0}
    assert client.get("/v2/models/nope/stats").status == 404


def test_statistics_of_a_version_end_with_it(serve, tiny):
    client = at_management(serve({"tiny": tiny.path}, management_port=0))
    assert client.post("/predict/tiny", ROW).status == 200
    for verb in ("unload", "load"):
        assert client.post(f"/v2/repository/models/tiny/{verb}", {}).status == 200
    (found,) = client.get("/v2/models/tiny/stats").json["model_stats"]
    assert found["inference_stats"]["success"]["count"] == 0


def test_a_management_port_that_is_taken_is_told_at_the_start(client, tiny):
    server = Server({"tiny": tiny.path}, port=0, management_port=client.server.port)
    with pytest.raises(OSError, match=f"127\\.0\\.0\\.1:{client.server.port}"):
        server.run()


@pytest.mark.parametrize(
    "target",
    [
        "/v2/repository/models/tiny/unload",
        "/inference.GRPCInferenceService/RepositoryModelUnload",
        "/v2/systemsharedmemory/unregister",
    ],
)
def test_no_page_in_a_browser_manages_a_server_that_asks_for_no_token(managed, target):
    reply = managed.post(target, {}, headers={"Origin": "http://evil.example"})
    assert reply.status == 403
    assert "'origin'" in reply.json["error"]
    assert managed.post("/predict/tiny", ROW).status == 200


def test_a_page_that_has_the_token_manages(serve):
    managed = at_management(serve(management_port=0, token="secret"))
    headers = {"Origin": "https://console.example", "Authorization": "Bearer secret"}
    assert managed.post(INDEX, {}, headers=headers).status == 200
