"""Header compression of HTTP/2: HPACK (RFC 7541), decoding with a bounded table, encoding without.

The encoder uses the static table and literals that enter no table: what it gives for the same
fields is the same bytes for ever, so that the blocks of common answers are constants.
"""

from collections import deque
from collections.abc import Iterable

from drivetrain.serve.transport import huffman

Fields = list[tuple[bytes, bytes]]

TABLE_BYTES = 4096
"""What a dynamic table holds unless the receiver says otherwise (RFC 9113 §6.5.2)."""
FIELD_BYTES = 32
"""What a field counts beside its name and value (§4.1)."""
EMPTY_TABLE = b"\x20"
"""At the beginning of a block: the encoder uses no dynamic table (§4.2, §6.3)."""
_LARGEST = (1 << 31) - 1

_STATIC = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
)
"""Appendix A; the first has the index 1."""


class HpackError(ValueError):
    """A block that cannot be decoded; the table behind it is lost, and with it the connection."""


class Decoder:
    """The receiving end of one connection.

    Args:
        table_bytes: what the dynamic table may hold, as the peer was told.

    Attributes:
        generation: grows with each change of the dynamic table. While it stays, a block that did
            not change it means the same fields again.
    """

    __slots__ = ("_bytes", "_entries", "_limit", "_most", "generation")

    def __init__(self, table_bytes: int = TABLE_BYTES) -> None:
        self._entries: deque[tuple[bytes, bytes]] = deque()  # the newest first
        self._bytes = 0
        self._limit = self._most = table_bytes
        self.generation = 0

    def decode(self, block: bytes, most: int = 1 << 30) -> Fields | None:
        """The fields of a header block.

        Args:
            block: the whole of it, its CONTINUATION frames included.
            most: the bytes that the fields may come to, 32 added for each (RFC 9113 §6.5.2).

        Returns:
            The fields in their order; None if they come to more than ``most``. The table then
            still holds what it should, and the connection can go on.

        Raises:
            HpackError: the block is damaged.
        """
        fields: Fields = []
        pos, size = 0, len(block)
        try:
            while pos < size:
                byte = block[pos]
                if byte > 0x80:  # indexed field
                    index, pos = (byte & 127, pos + 1) if byte < 255 else _integer(block, pos, 7)
                    field = self._field(index)
                elif byte & 0xC0 == 0x40:  # literal that enters the table
                    field, pos = self._literal(block, pos, 6)
                    self._insert(field)
                elif byte & 0xE0 == 0x20:  # size update
                    if fields:
                        raise HpackError("a table size changes behind a field")
                    limit, pos = _integer(block, pos, 5)
                    self._resize(limit)
                    continue
                elif byte == 0x80:
                    raise HpackError("a field has the index 0")
                else:  # literal that enters no table
                    field, pos = self._literal(block, pos, 4)
                most -= len(field[0]) + len(field[1]) + FIELD_BYTES
                if most >= 0 or not fields:  # the first one shows that there were fields
                    fields.append(field)
        except IndexError:
            raise HpackError("a header block ends within a field") from None
        return fields if most >= 0 else None

    def _field(self, index: int) -> tuple[bytes, bytes]:
        if index <= 61:
            return _STATIC[index - 1]
        if index - 62 >= len(self._entries):
            raise HpackError(f"a field has the index {index}, the table {len(self._entries)} more")
        return self._entries[index - 62]

    def _literal(self, block: bytes, pos: int, bits: int) -> tuple[tuple[bytes, bytes], int]:
        index, pos = _integer(block, pos, bits)
        if index:
            name = self._field(index)[0]
        else:
            name, pos = _string(block, pos)
        value, pos = _string(block, pos)
        return (name, value), pos

    def _insert(self, field: tuple[bytes, bytes]) -> None:
        self.generation += 1
        self._bytes += len(field[0]) + len(field[1]) + FIELD_BYTES
        self._entries.appendleft(field)
        self._evict()  # a field larger than the table empties it (§4.4)

    def _resize(self, limit: int) -> None:
        if limit > self._most:
            raise HpackError(f"a table of {limit} bytes, allowed: {self._most}")
        self.generation += 1
        self._limit = limit
        self._evict()

    def _evict(self) -> None:
        while self._bytes > self._limit:
            name, value = self._entries.pop()
            self._bytes -= len(name) + len(value) + FIELD_BYTES


def _integer(block: bytes, pos: int, bits: int) -> tuple[int, int]:
    """An integer whose first byte has ``bits`` for it, and where it ends (§5.1)."""
    full = (1 << bits) - 1
    value = block[pos] & full
    pos += 1
    if value < full:
        return value, pos
    shift = 0
    while True:
        byte = block[pos]
        pos += 1
        value += (byte & 127) << shift
        if value > _LARGEST or shift > 28:
            raise HpackError("an integer is too large")
        if byte < 128:
            return value, pos
        shift += 7


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    """A string, and where it ends (§5.2)."""
    coded = block[pos] & 128
    length, pos = _integer(block, pos, 7)
    end = pos + length
    if end > len(block):
        raise HpackError("a header block ends within a string")
    text = block[pos:end]
    if coded:
        try:
            text = huffman.decode(text)
        except ValueError as error:
            raise HpackError(str(error)) from None
    return text, end


# -- encoding ------------------------------------------------------------------------------------

_INDEX_OF_FIELD = {field: index for index, field in reversed(list(enumerate(_STATIC, 1)))}
_INDEX_OF_NAME = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC, 1)))}


def encode(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block that means the same whatever came before it; strings in their shorter form."""
    return b"".join([_encode_field(name, value) for name, value in fields])


def _encode_field(name: bytes, value: bytes) -> bytes:
    index = _INDEX_OF_FIELD.get((name, value))
    if index is not None:
        return _encode_integer(index, 7, 0x80)
    return name_prefix(name) + _encode_string(value)


def name_prefix(name: bytes) -> bytes:
    """What a literal field starts with, up to its value."""
    index = _INDEX_OF_NAME.get(name)
    if index is not None:
        return _encode_integer(index, 4, 0)
    return b"\0" + _encode_string(name)


def plain_string(value: bytes) -> bytes:
    """``value`` as a string without Huffman code: quicker for what is sent once."""
    if len(value) < 127:
        return b"%c%b" % (len(value), value)
    return _encode_integer(len(value), 7, 0) + value


def _encode_string(text: bytes) -> bytes:
    coded = huffman.encode(text)
    if len(coded) < len(text):
        return _encode_integer(len(coded), 7, 0x80) + coded
    return plain_string(text)


def _encode_integer(value: int, bits: int, first: int) -> bytes:
    full = (1 << bits) - 1
    if value < full:
        return bytes((first | value,))
    out = bytearray((first | full,))
    value -= full
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


_PREFIXES: dict[bytes, bytes] = {}


def line_fields(lines: bytes) -> bytes:
    """The block of header lines as HTTP/1.1 has them, each with its CRLF; of the server's own."""
    parts: list[bytes] = []
    for line in lines.split(b"\r\n"):
        if line:
            name, _, value = line.partition(b": ")
            prefix = _PREFIXES.get(name)
            if prefix is None:
                prefix = _PREFIXES[name] = name_prefix(name.lower())
            parts.append(prefix)
            parts.append(plain_string(value))
    return b"".join(parts)
