"""The head that clients repeat: known again by its bytes, and so parsed once."""

import re
from collections.abc import Callable, Mapping
from functools import partial

from drivetrain.serve.native import compiled

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})\r\n", re.IGNORECASE)
_DIGITS = 9
_HEAD_BYTES = 2048
_SECRET = re.compile(rb"(?:auth|cookie|key|secret|session|token)[^\r:]*:")
"""The name of a header whose value is one, in lower case; a value that looks so may be taken for
one."""
_FRAMING = (b"transfer-encoding", b"expect", b"upgrade")
"""What beside the length may frame the content, or be asked before it."""


class RepeatedHead:
    """A head of HTTP/1.1 that the parser has read, whatever length of content it announces.

    A client that keeps its connection sends one head over and over, and only the digits of
    Content-Length change. What the parser made of those bytes once it would make of them again:
    so they are compared, not parsed, and a head that differs in any other byte goes to the parser.

    Attributes:
        method: such as ``b"POST"``.
        target: path and query.
        headers: those that mean something to the server, less the length.
        secret: whether a header's name says that its client alone should know the value. Others'
            heads are not compared with it: the time that this takes would tell how much of it they
            have guessed.
        end: where the content begins if some data is one whole request with this head, else -1.
    """

    __slots__ = ("end", "headers", "method", "secret", "target")

    def __init__(
        self,
        before: bytes,
        behind: bytes,
        method: bytes,
        target: bytes,
        headers: Mapping[bytes, bytes],
    ) -> None:
        self.end: Callable[[bytes], int] = (
            partial(end_in_python, before, behind)
            if compiled is None
            else compiled.Head(before, behind).end
        )
        self.secret = _SECRET.search((before + behind).lower()) is not None
        self.method = method
        self.target = target
        self.headers = headers

    @classmethod
    def of(
        cls,
        data: bytes,
        length: bytes | None,
        method: bytes,
        target: bytes,
        headers: Mapping[bytes, bytes],
    ) -> "RepeatedHead | None":
        """The head of ``data``, which the parser read as one whole request and nothing beside.

        Returns:
            None where anything but the length frames the content.
        """
        if length is None or any(name in headers for name in _FRAMING):
            return None
        start = len(data) - int(length)
        if start > _HEAD_BYTES or data.find(b"\r\n\r\n") != start - 4:
            return None
        found = list(_LENGTH.finditer(data, 0, start))
        if len(found) != 1 or found[0][1] != length:
            return None
        before, behind = data[: found[0].start(1)], data[found[0].end(1) : start]
        return cls(before, behind, method, target, headers)


def end_in_python(before: bytes, behind: bytes, data: bytes) -> int:
    """What :attr:`RepeatedHead.end` says, without the compiled part."""
    if not data.startswith(before):
        return -1
    at = len(before)
    end = data.find(b"\r", at, at + _DIGITS + 1)
    if end < 0 or not data.startswith(behind, end):
        return -1
    start = end + len(behind)
    return start if data[at:end] == b"%d" % (len(data) - start) else -1
