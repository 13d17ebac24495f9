"""TLS: who is let in by which certificate, files that are wrong, files that change, the drain."""

import contextlib
import datetime
import http.client
import ipaddress
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from waiting import wait_until

from drivetrain.core.site import ServeSite, Site
from drivetrain.serve.server import Server, running
from drivetrain.serve.transport.http import HttpLimits
from drivetrain.serve.transport.tls import Tls
from drivetrain.serving import server_of

ROW = {"carrier": "AA", "distance": 733.5, "hour": 7}

DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_pem(key, password=None):
    kind = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, kind)


@dataclass(frozen=True)
class Signed:
    """Files of one certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates into a directory; ``file`` is its own certificate."""

    def __init__(self, directory, name="authority"):
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.file = directory / f"{name}.pem"
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(*[False] * 5, True, True, False, False), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        self.file.write_bytes(certificate.public_bytes(PEM))

    def sign(self, name="server", *, days=(-1, 1), password=None, serial=None):
        """A certificate for loopback, good from and to so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY)
            .not_valid_after(now + days[1] * DAY)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        signed = Signed(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        signed.certificate.write_bytes(certificate.public_bytes(PEM))
        signed.key.write_bytes(_key_pem(key, password))
        return signed


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def tls_of(signed, **rest):
    return Tls(signed.certificate, signed.key, **rest)


def trusting(authority, client=None):
    """A client's context, with its certificate if it has one."""
    context = ssl.create_default_context(cafile=authority.file)
    context.set_alpn_protocols(["http/1.1"])
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return context


def connection(client, context):
    return http.client.HTTPSConnection(*client.address, context=context, timeout=10)


def ask(client, context, method="POST", target="/predict/tiny", body=ROW):
    over = connection(client, context)
    try:
        over.request(method, target, json.dumps(body) if method == "POST" else None)
        reply = over.getresponse()
        return reply.status, reply.read()
    finally:
        over.close()


# -- who is let in ---------------------------------------------------------------------------------


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
        wait_until(lambda: _served(client, authority))


def _served(client, authority, identity=None):
    try:
        return ask(client, trusting(authority, identity))[0] == 200
    except OSError:
        return False


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


# -- files -----------------------------------------------------------------------------------------


def test_a_file_that_is_missing_is_named(authority, tmp_path):
    signed = authority.sign()
    gone = tmp_path / "gone.pem"
    with pytest.raises(FileNotFoundError, match=r"tls_certificate: .*gone\.pem"):
        Tls(gone, signed.key)
    with pytest.raises(FileNotFoundError, match=r"tls_key: .*gone\.pem"):
        Tls(signed.certificate, gone)
    with pytest.raises(FileNotFoundError, match=r"tls_client_ca: .*gone\.pem"):
        tls_of(signed, client_ca=gone)


def test_files_that_do_not_fit_each_other_or_are_no_pem_are_named(authority, tmp_path):
    signed, other = authority.sign("one"), authority.sign("two")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    with pytest.raises(ValueError, match=r"two\.key: found another certificate's key"):
        Tls(signed.certificate, other.key)
    with pytest.raises(ValueError, match=r"text\.pem .*allowed: both in PEM"):
        Tls(text, signed.key)
    with pytest.raises(ValueError, match=r"one\.crt: .*allowed: both in PEM"):
        Tls(signed.certificate)
    with pytest.raises(ValueError, match=r"tls_client_ca .*text\.pem: .*certificates in PEM"):
        tls_of(signed, client_ca=text)
    locked = authority.sign("locked", password=b"sesame")
    with pytest.raises(ValueError, match=r"locked\.key: found 'a pass phrase on it'"):
        tls_of(locked)


@pytest.mark.parametrize(
    ("days", "why"), [((-2, -1), "it has expired"), ((1, 2), "it is not valid yet")]
)
def test_a_certificate_that_clients_would_refuse_is_no_start(authority, days, why):
    with pytest.raises(ValueError, match=f"server.crt: clients will refuse it: {why}"):
        tls_of(authority.sign(days=days))


def test_a_certificate_and_key_in_one_file_will_do(serve, authority, tmp_path):
    signed = authority.sign()
    both = tmp_path / "both.pem"
    both.write_bytes(signed.certificate.read_bytes() + signed.key.read_bytes())
    assert ask(serve(tls=Tls(both)), trusting(authority))[0] == 200


def test_a_site_names_the_files_the_access_log_and_who_may_come(tiny, authority, tmp_path):
    signed, log = authority.sign(), tmp_path / "access.log"
    site = Site(
        serve=ServeSite(
            port=0,
            tls_certificate=str(signed.certificate),
            tls_key=str(signed.key),
            tls_client_ca=str(authority.file),
            access_log=str(log),
        )
    )
    server = server_of(site, [str(tiny.path)])
    with running(server):
        client = SimpleNamespace(address=(server.host, server.port))
        assert ask(client, trusting(authority, authority.sign("alice")))[0] == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(client, trusting(authority))
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["target"] == "/predict/tiny"


@pytest.mark.parametrize("option", ["tls_key", "tls_client_ca"])
def test_a_site_with_half_of_tls_is_refused_rather_than_served_in_the_clear(tiny, option):
    site = Site(serve=ServeSite(**{option: "some.pem"}))
    with pytest.raises(ValueError, match=f"{option}: found 'some.pem', allowed: none without"):
        server_of(site, [str(tiny.path)])


# -- files that change -----------------------------------------------------------------------------


def serial(client, authority):
    with trusting(authority).wrap_socket(client.socket(), server_hostname="127.0.0.1") as peer:
        return int(peer.getpeercert()["serialNumber"], 16)


def test_new_connections_get_a_new_certificate_and_open_ones_go_on(serve, authority):
    client = serve(tls=tls_of(authority.sign(serial=1001)))
    over = connection(client, trusting(authority))
    over.request("GET", "/v2")
    over.getresponse().read()
    assert serial(client, authority) == 1001
    authority.sign(serial=1002)
    wait_until(lambda: serial(client, authority) == 1002)
    over.request("GET", "/v2")
    assert over.getresponse().read()
    over.close()


def test_clients_of_an_authority_that_is_replaced_do_not_come_in_again(serve, authority, tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, new = Authority(tmp_path / "old", "old"), Authority(tmp_path / "new", "new")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(old.file.read_bytes())
    client = serve(tls=tls_of(authority.sign(), client_ca=trusted))
    alice, bob = old.sign("alice"), new.sign("bob")
    assert ask(client, trusting(authority, alice))[0] == 200
    trusted.write_bytes(new.file.read_bytes())
    wait_until(lambda: _served(client, authority, bob))
    assert not _served(client, authority, alice)


SERVE = """
import sys
from pathlib import Path
from drivetrain.serve.server import Server
from drivetrain.serve.transport.tls import Tls
bundle, certificate, key = sys.argv[1:]
server = Server({"tiny": Path(bundle)}, port=0, workers=2, tls=Tls(certificate, key))
sys.exit(server.run(lambda: print(server.port, flush=True)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers share a port on Linux")
def test_every_worker_and_every_successor_serves_the_new_certificate(tiny, authority):
    signed = authority.sign(serial=1001)
    child = subprocess.Popen(
        [*(sys.executable, "-W", "error", "-c", SERVE), tiny.path, *astuple(signed)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        address = ("127.0.0.1", int(child.stdout.readline()))
        client = SimpleNamespace(socket=lambda: socket.create_connection(address, timeout=10))

        def serials():
            return {serial(client, authority) for _ in range(12)}

        assert serials() == {1001}
        authority.sign(serial=1002)
        child.send_signal(signal.SIGHUP)
        wait_until(lambda: serials() == {1002})
        path = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        before = path.read_text().split()
        os.kill(int(before[0]), signal.SIGKILL)
        wait_until(lambda: len(set(path.read_text().split()) - {before[0]}) == 2)
        assert all(serials() == {1002} for _ in range(4))
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.communicate()


def test_what_cannot_be_used_is_said_once_and_the_old_certificate_stays(authority, caplog):
    signed = authority.sign()
    tls = tls_of(signed)
    good = signed.key.read_bytes()
    signed.key.write_bytes(b"nonsense")
    with caplog.at_level(logging.INFO, "drivetrain.serve"):
        assert [tls.renew() for _ in range(3)] == [False] * 3
        signed.key.unlink()
        assert [tls.renew() for _ in range(3)] == [False] * 3
        signed.key.write_bytes(good)
        assert tls.renew()
        assert not tls.renew()
        assert tls.renew(always=True)
    told = [record.levelname for record in caplog.records]
    assert told == ["ERROR", "ERROR", "INFO", "INFO"]


# -- the end ---------------------------------------------------------------------------------------


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
