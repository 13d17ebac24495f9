"""Content that a client compressed, of a request or of a message: gzip and deflate, bounded.

Sources: RFC 9110 §8.4.1 (of which ``deflate`` is zlib's format, RFC 1950) and gRPC's
doc/compression.md, which means the same two.
"""

import zlib

from drivetrain.serve.transport.exchange import RefusedError

_WINDOWS = {
    b"gzip": 16 + zlib.MAX_WBITS,
    b"x-gzip": 16 + zlib.MAX_WBITS,
    b"deflate": zlib.MAX_WBITS,
}


def check_coding(name: str, coding: bytes) -> None:
    """See that a coding is one that can be undone.

    Args:
        name: the header that names it, for an error.
        coding: what it says.

    Raises:
        RefusedError: 415, it is none of these.
    """
    if coding.lower() not in _WINDOWS and coding.lower() != b"identity":
        found = coding.decode("latin-1")
        raise RefusedError(
            415, f"header {name!r}: found {found!r}, allowed: identity, gzip, deflate."
        )


def inflate(what: str, content: bytes | bytearray, coding: bytes, most: int) -> bytes | bytearray:
    """Content as it was before it was compressed; no more than ``most`` bytes are ever made.

    Args:
        what: the content's name, for an error.
        content: what was received.
        coding: one that :func:`check_coding` lets pass.
        most: the bytes that it may have.

    Raises:
        RefusedError: 400, it is damaged or goes on behind its end; 413, it is too long.
    """
    coding = coding.lower()
    if coding == b"identity":
        return content
    decoder = zlib.decompressobj(_WINDOWS[coding])
    try:
        plain = decoder.decompress(content, most + 1)
    except zlib.error as error:
        raise RefusedError(400, f"{what}: found damaged {coding.decode()}: {error}.") from None
    if len(plain) > most:
        raise RefusedError(413, f"body: found more than {most} bytes, allowed: {most}.")
    if not decoder.eof or decoder.unused_data:
        raise RefusedError(400, f"{what}: found no whole {coding.decode()}.")
    return plain
