"""Protobuf's wire format by hand, where a message object for each call would cost too much.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Sequence

VARINT, FIXED64, CHUNK, FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10
Span = tuple[int, int, int]
"""Where a field begins, where its content starts, and where both end."""


class MalformedError(ValueError):
    """Bytes that are no message."""


def varint(value: int) -> bytes:
    """An integer below 2⁶⁴, seven bits a byte, the lowest first; two's complement if negative."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    if value < 0x80:
        return bytes((value,))
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def chunk(number: int, content: bytes) -> bytes:
    """A field of bytes, text, a message or packed numbers."""
    return b"%b%b%b" % (varint(number << 3 | CHUNK), varint(len(content)), content)


def integer(number: int, value: int) -> bytes:
    """A field that holds an integer."""
    return varint(number << 3 | VARINT) + varint(value)


def read_varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """An integer, and where it ends.

    Raises:
        MalformedError: the bytes end before it does, or it is longer than ten bytes.
    """
    value = shift = 0
    for end in range(at, min(at + _LONGEST_VARINT, len(data))):
        byte = data[end]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, end + 1
        shift += 7
    raise MalformedError(f"body: found no end of a number at byte {at}, allowed: a message.")


def read_chunk(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """Where the content of a field of bytes starts and ends, whose length is at ``at``.

    Raises:
        MalformedError: the bytes end before it does.
    """
    if at < len(data) and data[at] < 0x80:
        start = at + 1
        end = start + data[at]
    else:
        size, start = read_varint(data, at)
        end = start + size
    if end > len(data):
        raise MalformedError(
            f"body: found a field of {end - start} bytes at byte {start} of {len(data)}, "
            "allowed: a whole message."
        )
    return start, end


def split(
    data: bytes | bytearray, known: Sequence[int], most: int, at: int = 0
) -> tuple[dict[int, list[Span]], bool]:
    """Where the fields of a message lie that hold bytes, texts and messages.

    Other fields are passed over, as protobuf does with fields that it does not know.

    Args:
        data: the message.
        known: the numbers that are looked for.
        most: how many fields it may have: a field takes two bytes to send and fifty to keep.
        at: where to begin.

    Returns:
        Where each lies, by number, and whether they stand in the order of their numbers
        with none but those that are known.

    Raises:
        MalformedError: it is no message, or has more fields.
    """
    found: dict[int, list[Span]] = {number: [] for number in known}
    last, ordered = 0, True
    for _ in range(most):
        if at >= len(data):
            return found, ordered
        begin = at
        tag, at = read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == CHUNK:
            start, end = read_chunk(data, at)
            at = end
            if number in found:
                found[number].append((begin, start, end))
                ordered = ordered and number >= last
                last = number
            else:
                ordered = False
        else:
            at = _pass_over(data, at, kind)
            ordered = False
        if not 1 <= number < 1 << 29:
            raise MalformedError(f"body: found a field numbered {number}, allowed: a message.")
    if at < len(data):
        raise MalformedError(f"body: found more than {most} fields, allowed: at most so many.")
    return found, ordered


def _pass_over(data: bytes | bytearray, at: int, kind: int) -> int:
    if kind == VARINT:
        return read_varint(data, at)[1]
    if kind not in (FIXED64, FIXED32):
        raise MalformedError(f"body: found wire type {kind} before byte {at}, allowed: a message.")
    end = at + (8 if kind == FIXED64 else 4)
    if end > len(data):
        raise MalformedError("body: found the end within a field, allowed: a whole message.")
    return end
