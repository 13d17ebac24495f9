"""An authority that signs certificates, and clients that trust it."""

import datetime
import http.client
import ipaddress
import json
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from drivetrain.serve.transport.tls import Tls

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


def served(client, authority, identity=None):
    try:
        return ask(client, trusting(authority, identity))[0] == 200
    except OSError:
        return False
