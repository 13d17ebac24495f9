"""TLS: who is let in by which certificate, and the drain."""

import contextlib
import json
import ssl
import threading
import time

import pytest
from authority import (
    ROW,
    Authority,
    ask,
    connection,
    served,
    tls_of,
    trusting,
)
from waiting import wait_until

from drivetrain.serve.server import Server
from drivetrain.serve.transport.http import HttpLimits


def test_a_client_that_trusts_the_authority_is_served_over_a_modern_protocol(serve, authority):
    client = serve(tls=tls_of(authority.sign()))
    assert client.url == f"https://127.0.0.1:{client.server.port}"
    over = connection(client, trusting(authority))
    for _ in range(3):
        over.request("POST", "/predict/tiny", json.dumps(ROW))
        assert over.getresponse().read().startswith(b'{"')
    assert over.sock.version() == "TLSv1.3"
    assert over.sock.selected_alpn_protocol() == "http/1.1"
    over.close()


def test_a_client_that_prefers_http_2_speaks_it(serve, authority):
    client = serve(tls=tls_of(authority.sign()))
    context = trusting(authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with context.wrap_socket(client.socket(), server_hostname="127.0.0.1") as peer:
        assert peer.selected_alpn_protocol() == "h2"
        peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        assert peer.recv(4096)[3] == 4  # SETTINGS


def test_a_client_that_offers_nothing_known_is_told_so(serve, authority):
    client = serve(tls=tls_of(authority.sign()))
    context = trusting(authority)
    context.set_alpn_protocols(["spdy/3"])
    with context.wrap_socket(client.socket(), server_hostname="127.0.0.1") as peer:
        assert peer.selected_alpn_protocol() is None
        peer.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_tls_1_2_is_served_with_forward_secrecy_and_older_ones_are_not(serve, authority):
    client = serve(tls=tls_of(authority.sign()))
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with context.wrap_socket(client.socket(), server_hostname="127.0.0.1") as peer:
        assert peer.cipher()[0].startswith("ECDHE-")
    for ciphers in ("AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256"):  # no secrecy; CBC
        context = trusting(authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        with client.socket() as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_client_that_trusts_another_authority_goes_away_and_the_server_serves_on(
    serve, authority, tmp_path
):
    client = serve(tls=tls_of(authority.sign()))
    (tmp_path / "other").mkdir()
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(client, trusting(Authority(tmp_path / "other", "other")))
    assert ask(client, trusting(authority))[0] == 200


def test_with_a_client_authority_only_its_certificates_come_in(serve, authority, tmp_path):
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "other")
    client = serve(tls=tls_of(authority.sign(), client_ca=authority.file))
    assert ask(client, trusting(authority, authority.sign("alice")))[0] == 200
    for refused in (None, other.sign("mallory"), authority.sign("old", days=(-2, -1))):
        with pytest.raises((ssl.SSLError, ConnectionError)):  # TLS 1.3 tells at the first read
            ask(client, trusting(authority, refused))
    assert ask(client, trusting(authority, authority.sign("bob")))[0] == 200


def test_off_loopback_a_client_certificate_is_an_identity_and_tls_alone_is_none(tiny, authority):
    signed = authority.sign()
    with pytest.raises(ValueError, match="host: found"):
        Server({"tiny": tiny.path}, host="0.0.0.0", tls=tls_of(signed))
    mutual = tls_of(signed, client_ca=authority.file)
    assert Server({"tiny": tiny.path}, host="0.0.0.0", tls=mutual).url == "https://0.0.0.0:8080"


def test_plain_http_at_the_tls_port_gets_no_answer_and_harms_nobody(serve, authority):
    client = serve(tls=tls_of(authority.sign()))
    answer = client.raw(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not answer.startswith(b"HTTP/")
    assert ask(client, trusting(authority), "GET", "/v2")[0] == 200


def test_a_handshake_that_does_not_come_to_its_end_is_cut_off(serve, authority):
    client = serve(tls=tls_of(authority.sign(), handshake_seconds=0.3))
    with client.socket() as still, client.socket() as half:
        half.sendall(b"\x16\x03\x01\x02\x00\x01")  # a ClientHello that stops
        started = time.monotonic()
        for peer in (still, half):
            with contextlib.suppress(ConnectionError):
                assert peer.recv(1024) == b""
        assert time.monotonic() - started < 5
    assert ask(client, trusting(authority))[0] == 200


def test_more_connections_than_allowed_are_closed_before_a_handshake(serve, authority):
    client = serve(tls=tls_of(authority.sign(), connections=4))
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(client.socket()) for _ in range(4)]
        time.sleep(0.2)
        with client.socket() as fifth, contextlib.suppress(ConnectionError):
            assert fifth.recv(1) == b""
        for peer in peers:
            peer.close()
        wait_until(lambda: served(client, authority))


def test_an_answer_before_the_whole_body_arrives_over_tls(serve, authority):
    client = serve(tls=tls_of(authority.sign()), limits=HttpLimits(body_bytes=1000))
    context = trusting(authority)
    with context.wrap_socket(client.socket(), server_hostname="127.0.0.1") as peer:
        head = b"POST /predict/tiny HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n"
        peer.sendall(head + b"x" * 100_000)
        assert peer.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_large_answer_and_a_large_body_come_through(serve, authority):
    client = serve(tls=tls_of(authority.sign()))
    rows = {"rows": [ROW] * 5000}
    status, body = ask(client, trusting(authority), body=rows)
    assert status == 200
    assert len(json.loads(body)["predictions"]) == 5000


def test_a_request_that_is_half_sent_over_tls_when_the_server_ends_is_answered(serve, authority):
    client = serve(tls=tls_of(authority.sign()))
    body = json.dumps(ROW).encode()
    head = b"POST /predict/tiny HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with trusting(authority).wrap_socket(client.socket(), server_hostname="127.0.0.1") as peer:
        peer.sendall(head + body[:5])
        time.sleep(0.1)
        client.server.stop()
        time.sleep(0.2)
        peer.sendall(body[5:])
        data = peer.recv(4096)
    assert data.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" in data


def test_connections_that_nobody_had_taken_shake_hands_in_the_drain(serve, authority, monkeypatch):
    from drivetrain.serve.workers import doors as module

    client = serve(tls=tls_of(authority.sign()))
    held = threading.Event()
    real = module.take

    def late(listener):  # what came between the last accept and the end
        held.set()
        time.sleep(0.2)
        return real(listener)

    monkeypatch.setattr(module, "silence", late)
    monkeypatch.setattr(module, "take", late)
    monkeypatch.setattr(module, "hold_off", lambda listener: False)
    client.server.stop()
    assert held.wait(5)
    assert ask(client, trusting(authority))[0] == 200
