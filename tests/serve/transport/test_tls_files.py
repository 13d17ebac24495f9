"""Certificates and keys in files: what is wrong with them, and what changes in them."""

import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from authority import Authority, ask, connection, served, tls_of, trusting
from waiting import wait_until

from drivetrain.core.site import ServeSite, Site
from drivetrain.serve.server import running
from drivetrain.serve.transport.tls import Tls
from drivetrain.serving import server_of


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
    wait_until(lambda: served(client, authority, bob))
    assert not served(client, authority, alice)


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
