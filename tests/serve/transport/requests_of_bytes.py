"""Requests of HTTP/1.1 byte by byte, and what came back."""

import json

from wire import Wire

from drivetrain.serve.transport.http import Http
from drivetrain.serve.transport.http1 import Connection

ROW = json.dumps({"carrier": "AA", "distance": 1.0, "hour": 7}).encode()

HOST = b"Host: x\r\n"


def post(body: bytes = ROW, headers: bytes = b"", target: bytes = b"/predict/tiny") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST %b HTTP/1.1\r\n%b%b%b\r\n%b" % (target, HOST, length, headers, body)


CLOSE = b"Connection: close\r\n"


def statuses(data: bytes) -> list[int]:
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


def error(data: bytes) -> str:
    return json.loads(data.rpartition(b"\r\n\r\n")[2])["error"]


def connected(server: Http) -> tuple[Connection, Wire]:
    connection, transport = Connection(server), Wire()
    connection.connection_made(transport)
    return connection, transport
