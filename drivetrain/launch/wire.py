"""Messages between agents and their meeting: short JSON, each proven to be of one with the token.

The meeting sends a nonce, the agent its own and a proof, and the meeting a proof in turn, so that
both know that the other has the token, which never travels. A message is its length, an HMAC
(SHA-256) over direction, number and text, and the text: none can be changed, repeated or left out
unseen. It is not encrypted. Nothing that is heard is executed.
"""

import hashlib
import hmac
import json
import secrets
import socket
import struct
from collections.abc import Mapping
from typing import Any, cast

MAGIC = b"drivetrain meeting 1\n"
NONCE_BYTES = 32
MOST_BYTES = 1 << 16
"""Of one message."""

_HEAD = struct.Struct("<I32s")
_PROOF_BYTES = 32


def _proof(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), hashlib.sha256)


class Link:
    """One side of a connection whose other side is known.

    Args:
        connection: it is read without waiting; a message that can't be sent at once is an error.
        key: of this connection.
        sends: the name of this side's direction; the other's is ``hears``.
        rest: bytes that have been read already.
    """

    def __init__(
        self, connection: socket.socket, key: bytes, sends: bytes, hears: bytes, rest: bytes = b""
    ) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self.connection = connection
        self._key = key
        self._sends, self._hears = sends, hears
        self._sent = self._heard = 0
        self._buffer = bytearray(rest)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message.

        Raises:
            ConnectionError: the other side has gone, or has not read for long.
        """
        text = json.dumps(message).encode()
        assert len(text) <= MOST_BYTES
        proof = _proof(self._key, self._sends, self._sent.to_bytes(8, "little"), text)
        self._sent += 1
        try:
            self.connection.sendall(_HEAD.pack(len(text), proof) + text)
        except BlockingIOError:
            raise ConnectionError("the other side reads nothing") from None
        except OSError as error:
            raise ConnectionError(str(error)) from None

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come; none if nothing has.

        Raises:
            ConnectionError: the other side has gone, or says what it can't have said.
        """
        self._buffer += read(self.connection)
        found: list[dict[str, Any]] = []
        while len(self._buffer) >= _HEAD.size:
            length, proof = _HEAD.unpack_from(self._buffer)
            if length > MOST_BYTES:
                raise ConnectionError(f"a message of {length} bytes")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                break
            text = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[:end]
            number = self._heard.to_bytes(8, "little")
            if not hmac.compare_digest(proof, _proof(self._key, self._hears, number, text)):
                raise ConnectionError("a message that is not from who knows the token")
            self._heard += 1
            found.append(_object(text))
        return found

    def close(self) -> None:
        """Let go of the connection."""
        self.connection.close()


def _object(text: bytes) -> dict[str, Any]:
    try:
        message: object = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ConnectionError("a message that is no JSON object")
    return cast("dict[str, Any]", message)


def read(connection: socket.socket) -> bytes:
    """What has come over a connection that does not wait; empty if nothing has.

    Raises:
        ConnectionError: it was closed.
    """
    try:
        data = connection.recv(MOST_BYTES)
    except BlockingIOError:
        return b""
    except OSError as error:
        raise ConnectionError(str(error)) from None
    if not data:
        raise ConnectionError("the other side closed the connection")
    return data


class Greeting:
    """A connection that the meeting has accepted and whose other side it does not know yet.

    Args:
        connection: just accepted.
        token: that the other side must know.
    """

    def __init__(self, connection: socket.socket, token: bytes) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._token = token
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._buffer = bytearray()
        connection.send(MAGIC + self._nonce)

    def receive(self) -> Link | None:
        """The link, when the other side has proven itself; None before.

        Raises:
            ConnectionError: it has gone, or does not know the token.
        """
        self._buffer += read(self.connection)
        size = NONCE_BYTES + _PROOF_BYTES
        if len(self._buffer) < size:
            return None
        theirs, proof = bytes(self._buffer[:NONCE_BYTES]), self._buffer[NONCE_BYTES:size]
        if not hmac.compare_digest(proof, _proof(self._token, b"agent", self._nonce, theirs)):
            raise ConnectionError("an agent that does not know the token")
        self.connection.send(_proof(self._token, b"meeting", theirs, self._nonce))
        key = _proof(self._token, b"key", self._nonce, theirs)
        return Link(self.connection, key, b"m", b"a", bytes(self._buffer[size:]))


def connect(address: tuple[str, int], token: bytes, seconds: float) -> Link:
    """Reach a meeting.

    Args:
        address: host and port.
        token: that both sides know.
        seconds: for each step of it.

    Raises:
        ConnectionError: whoever listens there is no meeting, or does not know the token.
        OSError: nobody listens there, or none answers in time.
    """
    connection = socket.create_connection(address, timeout=seconds)
    try:
        head = _exactly(connection, len(MAGIC) + NONCE_BYTES)
        if not head.startswith(MAGIC):
            raise ConnectionError("whoever listens there is no meeting of agents")
        theirs, nonce = head[len(MAGIC) :], secrets.token_bytes(NONCE_BYTES)
        connection.sendall(nonce + _proof(token, b"agent", theirs, nonce))
        proof = _exactly(connection, _PROOF_BYTES)
        if not hmac.compare_digest(proof, _proof(token, b"meeting", nonce, theirs)):
            raise ConnectionError("whoever listens there does not know the token")
        return Link(connection, _proof(token, b"key", theirs, nonce), b"a", b"m")
    except BaseException:
        connection.close()
        raise


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        data = connection.recv(count - len(found))
        if not data:
            raise ConnectionError("the other side closed the connection; is the token the same?")
        found += data
    return bytes(found)
