"""What a request is called: by its client, in a header or in its body, or by the server."""

import os
import re
from itertools import count

from drivetrain.core.errors import wrong
from drivetrain.serve.transport.exchange import Exchange

PLAIN_ID = re.compile(r"[\x21-\x7e]{1,256}")
"""What stands in a header as it is."""
_ID_LENGTH = 256


class RequestIds:
    """Identities for requests that bring none: unique over processes, cheap to make."""

    def __init__(self) -> None:
        self._prefix = os.urandom(6).hex().encode()
        self._count = count(1)

    def make(self) -> bytes:
        """The next one."""
        return b"%b-%x" % (self._prefix, next(self._count))


def header_id(exchange: Exchange) -> str | None:
    """The identity in ``x-request-id``.

    Raises:
        ValueError: it is not visible ASCII, or longer than 256.
    """
    value = exchange.headers.get(b"x-request-id")
    if value is None:
        return None
    text = value.decode("latin-1")
    if not PLAIN_ID.fullmatch(text):
        raise wrong("header 'x-request-id'", text, "1 to 256 visible ASCII characters")
    return text


def body_id(value: str | None) -> str | None:
    """The identity in a request's body: any text, not too long to be given back in a header.

    Raises:
        ValueError: it is too long.
    """
    if value is not None and len(value) > _ID_LENGTH:
        raise wrong("id", value, f"at most {_ID_LENGTH} characters")
    return value or None
