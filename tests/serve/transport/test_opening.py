"""One port for HTTP/1.1 and HTTP/2: who gets a connection, and when."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from http2_peer import END, GET, HELLO, POST, Wire, request

from drivetrain.serve.transport import http1, http2
from drivetrain.serve.transport.frames import HEADERS, PREFACE, frame
from drivetrain.serve.transport.hpack import encode
from drivetrain.serve.transport.http import Http, HttpLimits
from drivetrain.serve.transport.opening import Opening

ROW = json.dumps({"carrier": "AA", "distance": 1.0, "hour": 7}).encode()
OLD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Between(Wire):
    """A transport whose protocol can be changed, and that may have shaken hands."""

    def __init__(self, alpn: str | None = None, tls: bool = False) -> None:
        super().__init__()
        self.protocol: object = None
        self._alpn, self._tls = alpn, tls

    def selected_alpn_protocol(self) -> str | None:
        return self._alpn

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self if name == "ssl_object" and self._tls else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol


def opened(transport: Between, *data: bytes, http: Http | None = None) -> object:
    """Who has the connection after these bytes."""

    async def run() -> object:
        shared = http or Http(lambda exchange: exchange.respond(200), HttpLimits())
        transport.protocol = opening = Opening(shared)
        opening.connection_made(transport)
        for part in data:
            transport.protocol.data_received(part)
        return transport.protocol

    return asyncio.run(run())


def test_the_preface_means_http_2_in_however_many_parts():
    for parts in ([HELLO], [HELLO[:1], HELLO[1:]], [bytes([byte]) for byte in HELLO]):
        assert isinstance(opened(Between(), *parts), http2.Connection)


def test_anything_else_means_http_1():
    for parts in ([OLD], [b"P", b"OST / HTTP/1.1\r\n"], [b"PRI * HTTP/2.0\r\n\r\nXX"], [b"\0"]):
        transport = Between()
        assert isinstance(opened(transport, *parts), http1.Connection)


def test_what_could_be_either_waits():
    assert isinstance(opened(Between(), PREFACE[:-1]), Opening)


def test_over_tls_the_handshake_decides_before_any_byte():
    assert isinstance(opened(Between("h2", tls=True)), http2.Connection)
    assert isinstance(opened(Between("http/1.1", tls=True)), http1.Connection)
    assert isinstance(opened(Between(None, tls=True), HELLO), http2.Connection)
    assert isinstance(opened(Between(None, tls=True), OLD), http1.Connection)


def test_a_connection_is_counted_once_whoever_has_it():
    for data in (b"", HELLO, OLD):
        http = Http(lambda exchange: exchange.respond(200), HttpLimits())
        opened(Between(), data, http=http)
        assert len(http.connections) == 1


def test_one_connection_too_many_is_told_so_at_once():
    http = Http(lambda exchange: None, HttpLimits(connections=1))
    opened(Between(), HELLO + request(1, GET, None), http=http)
    transport = Between()
    opened(transport, http=http)
    assert b"".join(transport.writes).startswith(b"HTTP/1.1 503")


def test_a_connection_that_says_nothing_is_closed():
    http = Http(lambda exchange: None, HttpLimits(header_seconds=0.01))
    for data in (b"", b"PRI * "):
        transport = Between()
        opened(transport, data, http=http)
        time.sleep(0.02)
        http.tick()
        assert transport.closing


def test_an_answer_is_the_same_over_either(client):
    head = [*POST[:2], (b":path", b"/predict/tiny"), POST[3], (b"x-request-id", b"7")]
    old = client.post("/predict/tiny", ROW)
    assert old.status == 200
    with client.socket() as peer:
        peer.settimeout(5)
        peer.sendall(HELLO + request(1, head, ROW))
        data = b""
        while old.body not in data:
            data += peer.recv(4096)


@pytest.mark.parametrize("target", [b"/v2/health/live", b"/none"])
def test_a_server_speaks_both_on_one_port(client, target):
    fields = [*GET[:2], (b":path", target), GET[3]]
    with client.socket() as peer:
        peer.sendall(HELLO + frame(HEADERS, END, 1, encode(fields)))
        peer.settimeout(5)
        data = b""
        status = b"\x88" if target != b"/none" else b"\x8d"
        while status not in data:
            data += peer.recv(4096)
    assert client.get(target.decode()).status == (200 if status == b"\x88" else 404)


def test_a_drain_ends_http_2_with_its_answers_given(serve):
    client = serve()
    with client.socket() as peer:
        peer.sendall(HELLO)
        peer.recv(4096)
        client.server.stop()
        data = b"".join(iter(lambda: peer.recv(4096), b""))
    assert b"\x7f\xff\xff\xff" in data


def test_a_drain_under_load_loses_no_call(serve):
    client = serve()
    answered: list[int] = []
    lost: list[str] = []

    def call() -> None:
        with grpc.insecure_channel("{}:{}".format(*client.address)) as channel:
            ask = channel.unary_unary("/none.None/None")
            while True:
                try:
                    ask(b"", timeout=5)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                        answered.append(1)
                        continue
                    if "failed to connect" not in error.details().lower():
                        lost.append(error.details())
                    return

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call) for _ in range(4)]
        while len(answered) < 200:
            time.sleep(0.01)
        client.server.stop()
        for done in calls:
            done.result(20)
    assert lost == []
