"""The Huffman code of HPACK (RFC 7541, appendix B)."""

# fmt: off
_LENGTHS = bytes((
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
))
# fmt: on
"""The bits of each byte's code, and last those of the end mark; the code is canonical."""
_END = 256


def _codes() -> dict[int, int]:
    """Symbol to code: of one length they count up in the symbols' order."""
    codes: dict[int, int] = {}
    code = length = 0
    for bits, symbol in sorted((bits, symbol) for symbol, bits in enumerate(_LENGTHS)):
        code <<= bits - length
        length = bits
        codes[symbol] = code
        code += 1
    return codes


_CODES = _codes()
_SYMBOLS = {(_LENGTHS[symbol], code): symbol for symbol, code in _CODES.items()}

# A state is the bits since the last whole symbol, as a number with a 1 before them. There are as
# many as the tree has inner nodes, 256; a step of four bits from one is worked out when first met.
_START = 1
_STEPS: dict[int, tuple[int, bytes]] = {}
_PADDED = frozenset((1 << bits) | ((1 << bits) - 1) for bits in range(8))
"""States in which a string may end: less than eight bits, all of them 1 (§5.2)."""


def encode(text: bytes) -> bytes:
    """``text`` in the code, padded with ones to whole bytes."""
    value = 0
    bits = 0
    for byte in text:
        value = value << _LENGTHS[byte] | _CODES[byte]
        bits += _LENGTHS[byte]
    padding = -bits % 8
    return (value << padding | (1 << padding) - 1).to_bytes((bits + padding) // 8, "big")


def decode(code: bytes) -> bytes:
    """The bytes that were encoded.

    Raises:
        ValueError: it holds the end mark, or its padding is none.
    """
    state = _START
    parts: list[bytes] = []
    for byte in code:
        for nibble in (byte >> 4, byte & 15):
            step = _STEPS.get(state << 4 | nibble)
            if step is None:
                step = _STEPS[state << 4 | nibble] = _step(state, nibble)
            state, found = step
            if found:
                parts.append(found)
    if state not in _PADDED:
        raise ValueError("the padding of a Huffman code is not the beginning of its end mark")
    return b"".join(parts)


def _step(state: int, nibble: int) -> tuple[int, bytes]:
    """The state after four bits more, and the symbol that ended among them: codes have five."""
    found = b""
    for shift in (3, 2, 1, 0):
        state = state << 1 | nibble >> shift & 1
        bits = state.bit_length() - 1
        symbol = _SYMBOLS.get((bits, state - (1 << bits)))
        if symbol is not None:
            if symbol == _END:
                raise ValueError("a Huffman code holds its end mark")
            found = bytes((symbol,))
            state = _START
    return state, found
