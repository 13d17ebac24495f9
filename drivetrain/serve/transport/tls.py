"""TLS of a listener: its certificate, which clients it lets in, both anew when the files change."""

import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakSet

from drivetrain.core.errors import wrong

log = logging.getLogger("drivetrain.serve")

PROTOCOLS = ("h2", "http/1.1")
"""What is offered by ALPN (RFC 7301), the preferred one first."""
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption only, which is what RFC 9113 §9.2.2
leaves for HTTP/2 too. Those of TLS 1.3 are all of this kind."""
_HANDSHAKE_SECONDS = 10.0
_SHUTDOWN_SECONDS = 2.0
_CONNECTIONS = 8192
_VERIFY_FAILURES = {9: "it is not valid yet", 10: "it has expired"}
"""Of X509_V_ERR codes those that an operator can tell from their words."""


class Tls:
    """The server's side of TLS 1.2 and 1.3.

    A client certificate is an identity: who must bring one is let in without a token. It is asked
    for in the handshake, before a byte of HTTP is read, so a platform's health checks must bring
    one too; a check that cannot should open the port and no more (a TCP check).

    Args:
        certificate: a PEM file of the server's certificate and those between it and its root.
        key: a PEM file of its private key, without a pass phrase; None if ``certificate`` has it.
        client_ca: a PEM file of those who sign clients' certificates; clients must then bring one.
            None asks for none.
        handshake_seconds: what a handshake may take.
        connections: open at once, those in their handshakes included; more are closed at once.

    Raises:
        OSError: a file cannot be read; names it.
        ValueError: a file is not PEM, the key is not the certificate's or needs a pass phrase, or
            clients would refuse the certificate, such as one that has expired.
    """

    def __init__(
        self,
        certificate: str | Path,
        key: str | Path | None = None,
        client_ca: str | Path | None = None,
        *,
        handshake_seconds: float = _HANDSHAKE_SECONDS,
        connections: int = _CONNECTIONS,
    ) -> None:
        self._certificate = Path(certificate)
        self._key = None if key is None else Path(key)
        self._client_ca = None if client_ca is None else Path(client_ca)
        self._handshake_seconds = handshake_seconds
        self._wrong = ""
        self._seen = self._look()
        self._context = _Latest(self._load(), connections)

    @property
    def identifies(self) -> bool:
        """Whether clients must say who they are."""
        return self._client_ca is not None

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword arguments for ``create_server`` and ``connect_accepted_socket`` of a loop."""
        return {
            "ssl": self._context,
            "ssl_handshake_timeout": self._handshake_seconds,
            "ssl_shutdown_timeout": _SHUTDOWN_SECONDS,
        }

    def renew(self, *, always: bool = False) -> bool:
        """Read the files again if they have changed; connections that are open stay as they are.

        What cannot be used is logged, and the server goes on with what it had.

        Args:
            always: even if they have not.

        Returns:
            Whether new connections get what was read.
        """
        try:
            seen = self._look()
            if seen == self._seen and not always:
                return False
            self._seen = seen
            self._context.latest = self._load()
        except (OSError, ValueError) as error:
            if always or str(error) != self._wrong:  # said once, not at every look
                log.error("TLS stays as it is: %s", error)
            self._wrong = str(error)
            return False
        self._wrong = ""
        log.info("TLS has read %s again", self._certificate)
        return True

    # -- files ---------------------------------------------------------------------------------

    def _look(self) -> tuple[tuple[int, ...], ...]:
        """What tells one state of the files from another."""
        found: list[tuple[int, ...]] = []
        for option, path in self._files():
            try:
                stat = os.stat(path)
            except OSError as error:
                raise OSError(error.errno, f"{option}: {error.strerror}", str(path)) from None
            found.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(found)

    def _files(self) -> list[tuple[str, Path]]:
        named = {
            "tls_certificate": self._certificate,
            "tls_key": self._key,
            "tls_client_ca": self._client_ca,
        }
        return [(option, path) for option, path in named.items() if path is not None]

    def _load(self) -> ssl.SSLContext:
        for option, path in self._files():
            try:
                path.read_bytes()
            except OSError as error:
                raise OSError(error.errno, f"{option}: {error.strerror}", str(path)) from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(list(PROTOCOLS))
        self._load_chain(context)
        self._check(context)
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except ssl.SSLError as error:
                raise wrong(
                    f"tls_client_ca {self._client_ca}", error.reason, "certificates in PEM"
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _load_chain(self, context: ssl.SSLContext) -> None:
        key = self._key or self._certificate

        def ask() -> NoReturn:  # without this OpenSSL would ask at the terminal
            raise wrong(f"tls_key {key}", "a pass phrase on it", "a key without one")

        try:
            context.load_cert_chain(self._certificate, self._key, ask)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ValueError(
                    f"tls_key {key}: found another certificate's key, "
                    f"allowed: that of tls_certificate {self._certificate}."
                ) from None
            raise ValueError(
                f"tls_certificate {self._certificate} and tls_key {key}: found "
                f"{error.reason or 'no certificate or no key'}, allowed: both in PEM."
            ) from None

    def _check(self, server: ssl.SSLContext) -> None:
        """Shake hands as a client that trusts this very certificate."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        client.load_verify_locations(self._certificate)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (
            client.wrap_bio(to_client, to_server),
            server.wrap_bio(to_server, to_client, server_side=True),
        )
        for _ in range(4):  # in TLS 1.3 and in 1.2 each side speaks twice at most
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                except ssl.SSLCertVerificationError as error:
                    why = _VERIFY_FAILURES.get(error.verify_code, error.verify_message)
                    raise ValueError(
                        f"tls_certificate {self._certificate}: clients will refuse it: {why}."
                    ) from None
                except ssl.SSLError as error:
                    raise ValueError(
                        f"tls_certificate {self._certificate}: no handshake: {error.reason}."
                    ) from None


class _Latest(ssl.SSLContext):
    """Hands each new connection to the context that was read last.

    An event loop is given one context for good. A second one in its place, rather than new files
    in the first, changes all at once or nothing.
    """

    latest: ssl.SSLContext
    _open: "WeakSet[ssl.SSLObject]"
    _most: int

    def __new__(cls, latest: ssl.SSLContext, most: int) -> "_Latest":
        context = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        context.latest, context._most, context._open = latest, most, WeakSet()
        return context

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        if len(self._open) >= self._most:
            raise ConnectionRefusedError("too many connections over TLS")
        connection = self.latest.wrap_bio(*args, **options)
        self._open.add(connection)
        return connection
