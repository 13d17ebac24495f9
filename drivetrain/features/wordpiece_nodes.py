"""WordPiece as integer arithmetic: the nodes that cut texts into tokens within a graph.

All positions of all rows take each step together, and no step's cost depends on what the text is,
only on how long it is: the longest text of a batch sets the width.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from drivetrain.core.polynomial import BASE, WORD
from drivetrain.features.characters import BLOCK, Characters
from drivetrain.features.hashing import powers
from drivetrain.features.wordpiece import WordPiece, codes_of

if TYPE_CHECKING:
    from drivetrain.features.builder import Builder

SYMBOLS = 1 << 20
"""What a word's number is multiplied with to lie beside a symbol in one integer."""
LENGTHS = 1 << 32
"""What a piece's length is multiplied with to lie beside its token."""


def tokens(graph: "Builder", column: str, max_bytes: int, length: int, wordpiece: WordPiece) -> str:
    """The tokens of a column's texts, int64 ``[rows, length]``.

    Args:
        graph: the builder.
        column: of strings.
        max_bytes: how many bytes of a text are read.
        length: positions, ``[CLS]`` and ``[SEP]`` among them.
        wordpiece: the vocabulary.
    """
    text = graph.bytes(column, max_bytes)
    alphabet = wordpiece.alphabet
    characters = Characters.of(
        alphabet, lowercase=wordpiece.lowercase, strip_accents=wordpiece.strip_accents
    )
    symbol, word = _normalised(graph, text, _code_points(graph, text), characters)
    before = graph.op("Pad", word, graph.ints(0, 1, 0, -1))
    begins = graph.op("Not", graph.op("Equal", word, before))
    begins = graph.op("And", begins, graph.cast(symbol, "bool"))
    codes = codes_of(len(alphabet) + 2)
    first = _where(graph, begins, graph.constant(len(codes) // 2, "int64"))
    code = graph.op("Gather", graph.constant(codes, "int64"), graph.op("Add", symbol, first))
    positions = _range(graph, text, max_bytes)
    best = _longest(graph, text, code, positions, max_bytes, wordpiece.prefixes(alphabet))
    here, token = _cut(graph, text, symbol, begins, best, positions, wordpiece)
    return _framed(graph, text, here, token, length, wordpiece.pieces)


def _code_points(graph: "Builder", text: str) -> str:
    """Where a character begins its code point, elsewhere 0: int64 ``[rows, bytes]``.

    Half a character, which the limit of bytes may leave, counts as none.
    """
    broken = -(1 << 40)  # so low that whatever is added to it stays below 0
    follows = [b - 0x80 if 0x80 <= b < 0xC0 else broken for b in range(256)]
    first = [0] * 256
    factors = [[0] * 256 for _ in range(3)]
    for length, (low, high) in enumerate(((0, 0x80), (0xC0, 0xE0), (0xE0, 0xF0), (0xF0, 0xF8))):
        for b in range(low, high):
            first[b] = b - low << 6 * length
            for i in range(length):
                factors[i][b] = 1 << 6 * (length - 1 - i)
    at = graph.cast(text, "int32")
    beyond = graph.op("Gather", graph.constant(follows, "int64"), at)
    padded = graph.op("Pad", beyond, graph.ints(0, 0, 0, 3), graph.constant(broken, "int64"))
    code = graph.op("Gather", graph.constant(first, "int64"), at)
    for i, table in enumerate(factors):
        factor = graph.op("Gather", graph.constant(table, "int64"), at)
        end = graph.ints(i - 2) if i < 2 else graph.ints(1 << 62)
        after = graph.op("Slice", padded, graph.ints(i + 1), end, graph.ints(1))
        code = graph.op("Add", code, graph.op("Mul", factor, after))
    return graph.op("Clip", code, graph.constant(0, "int64"), graph.constant(0x10FFFF, "int64"))


def _normalised(graph: "Builder", text: str, codes: str, characters: Characters) -> tuple[str, str]:
    """The symbols of the normalised text without gaps, and the number of each one's word.

    Both int64 ``[rows, bytes]``, padded with 0: no character becomes more of them than it has
    bytes. Words count from 1, in order and with gaps.
    """
    block = graph.constant(BLOCK, "int64")
    base = graph.op(
        "Gather", graph.constant(characters.first, "int32"), graph.op("Div", codes, block)
    )
    inside = graph.cast(graph.op("Mod", codes, block), "int32")
    place_ = graph.op("Add", base, inside)
    entry = graph.op("Gather", graph.constant(characters.blocks, "int32"), place_)
    axis = graph.constant(1, "int64")
    # White space ends a word; what stands apart does so twice, before itself and after.
    ends = graph.op("Gather", graph.constant(characters.splits, "int64"), entry)
    begins = graph.op("Gather", graph.constant(1 + characters.splits // 2, "int64"), entry)
    word = graph.op("Add", graph.op("CumSum", ends, axis, exclusive=1), begins)
    count = (characters.symbols > 0).sum(1)
    made = graph.op("Gather", graph.constant(count, "int64"), entry)
    slot = graph.op("CumSum", made, axis, exclusive=1)
    numbered = graph.op("Mul", word, graph.constant(SYMBOLS, "int64"))
    width = graph.op("Shape", text, start=1, end=2)
    slots: list[str] = []
    values: list[str] = []
    for i, column in enumerate(characters.symbols.T):
        symbol = graph.op("Gather", graph.constant(column, "int64"), entry)
        own = graph.op("Add", slot, graph.constant(i, "int64")) if i else slot
        slots.append(graph.op("Where", graph.cast(symbol, "bool"), own, width))
        values.append(graph.op("Add", numbered, symbol))
    spread = _spread(graph, text, graph.concat(slots, axis=1), graph.concat(values, axis=1), "none")
    packed = _without_last(graph, spread)
    size = graph.constant(SYMBOLS, "int64")
    return graph.op("Mod", packed, size), graph.op("Div", packed, size)


def _longest(
    graph: "Builder",
    text: str,
    code: str,
    positions: str,
    max_bytes: int,
    prefixes: Mapping[int, Mapping[int, int]],
) -> str:
    """What stands for the longest piece at each position (see ``WordPiece.prefixes``), or 0.

    What goes on beyond a beginning of a piece is a beginning too, until it is none any more: so
    the longest is found bit by bit of its length, greatest first (Waldvogel et al., "Scalable
    High Speed IP Routing Lookups", 1997). No length is asked for twice, so each bit has a table
    of its own. A code that begins a word is in no piece but at its front, so none goes beyond.
    """
    weighted = graph.op("Mul", code, powers(graph, BASE, max_bytes, text, first=0))
    axis = graph.constant(1, "int64")
    sums = graph.op("Pad", graph.op("CumSum", weighted, axis), graph.ints(0, 1, 0, 0))
    before = _without_last(graph, sums)
    back = powers(graph, pow(BASE, -1, WORD), max_bytes, text, first=0)
    width = graph.op("Shape", text, start=1, end=2)
    zero = graph.op("Expand", graph.constant(0, "int64"), graph.op("Shape", text))
    length = best = zero
    for bit in reversed(range(max(prefixes).bit_length())):
        table = {
            key: value
            for size, known in prefixes.items()
            if size >> bit & 1 and not size & (1 << bit) - 1
            for key, value in known.items()
        }
        tried = graph.op("Add", length, graph.constant(1 << bit, "int64"))
        end = graph.op("Min", graph.op("Add", positions, tried), width)
        total = graph.op("Sub", graph.op("GatherElements", sums, end, axis=1), before)
        found = graph.op(
            "LabelEncoder",
            graph.op("Mul", total, back),
            domain="ai.onnx.ml",
            keys_int64s=list(table),
            values_int64s=list(table.values()),
            default_int64=0,
        )
        hit = graph.cast(found, "bool")
        length = graph.op("Where", hit, tried, length)
        best = graph.op("Where", hit, found, best)
    return best


def _cut(
    graph: "Builder",
    text: str,
    symbol: str,
    begins: str,
    best: str,
    positions: str,
    wordpiece: WordPiece,
) -> tuple[str, str]:
    """Where tokens begin, and the token of each place: boolean and int64 ``[rows, bytes]``."""
    base = graph.constant(LENGTHS, "int64")
    found = graph.op("Sub", best, graph.cast(graph.cast(best, "bool"), "int64"))
    size = graph.op("Div", found, base)
    matched = graph.cast(size, "bool")
    width = graph.op("Shape", text, start=1, end=2)
    after = graph.op("Where", matched, graph.op("Add", positions, size), width)
    there = graph.cast(symbol, "bool")
    reached = graph.op("And", _reached(graph, text, begins, after, wordpiece.longest_word), there)
    # A word that is too long, or has a place where no piece fits, is unknown as a whole.
    too_many = graph.constant(wordpiece.longest_word + 1, "int64")
    stuck = graph.op("And", reached, graph.op("Not", matched))
    weight = graph.op("Where", stuck, too_many, graph.cast(there, "int64"))
    axis = graph.constant(1, "int64")
    word = graph.op("CumSum", graph.cast(begins, "int64"), axis)
    weights = graph.op("GatherElements", _spread(graph, text, word, weight, "add"), word, axis=1)
    unknown = graph.op("GreaterOrEqual", weights, too_many)
    known = graph.op("And", reached, graph.op("Not", unknown))
    here = graph.op("Or", known, graph.op("And", begins, unknown))
    token = graph.op("Mod", found, base)
    unk = graph.constant(wordpiece.pieces["[UNK]"], "int64")
    return here, graph.op("Where", unknown, unk, token)


def _reached(graph: "Builder", text: str, begins: str, after: str, longest: int) -> str:
    """The places that one comes to from where words begin, by going on after each piece.

    By pointer jumping: after n rounds all that lie less than 2^n pieces away are reached.
    """
    rows = graph.op("Shape", text, start=0, end=1)
    width = graph.op("Shape", text, start=1, end=2)
    last = graph.op("Expand", width, graph.op("Concat", rows, graph.ints(1), axis=0))
    jump = graph.op("Concat", after, last, axis=1)
    found = graph.op("Pad", graph.cast(begins, "int64"), graph.ints(0, 0, 0, 1))
    for _ in range(longest.bit_length()):
        found = graph.op("ScatterElements", found, jump, found, axis=1, reduction="max")
        jump = graph.op("GatherElements", jump, jump, axis=1)
    return graph.cast(_without_last(graph, found), "bool")


def _framed(
    graph: "Builder", text: str, here: str, token: str, length: int, pieces: Mapping[str, int]
) -> str:
    """The first tokens of each text between ``[CLS]`` and ``[SEP]``, int64 ``[rows, length]``."""
    axis = graph.constant(1, "int64")
    rank = graph.op("CumSum", graph.cast(here, "int64"), axis)
    most = graph.constant(length - 2, "int64")
    kept = graph.op("And", here, graph.op("LessOrEqual", rank, most))
    slot = graph.op("Where", kept, rank, graph.constant(length, "int64"))
    rows = graph.op("Shape", text, start=0, end=1)
    shape = graph.op("Concat", rows, graph.ints(length + 1), axis=0)
    empty = graph.op("Expand", graph.constant(0, "int64"), shape)
    body = _without_last(graph, graph.op("ScatterElements", empty, slot, token, axis=1))
    count = graph.op("Min", graph.op("ReduceMax", rank, graph.ints(1), keepdims=1), most)
    position = graph.ints(*range(length))
    ends = graph.op("Equal", position, graph.op("Add", count, graph.constant(1, "int64")))
    end = _where(graph, ends, graph.constant(pieces["[SEP]"], "int64"))
    begin = graph.ints(pieces["[CLS]"], *[0] * (length - 1))
    return graph.op("Add", graph.op("Add", body, end), begin)


def _spread(graph: "Builder", text: str, slots: str, values: str, reduction: str) -> str:
    """Values at their slots in ``[rows, bytes + 1]`` zeros; the last slot is for what is none."""
    rows = graph.op("Shape", text, start=0, end=1)
    width = graph.op("Shape", text, start=1, end=2)
    shape = graph.op("Concat", rows, graph.op("Add", width, graph.ints(1)), axis=0)
    empty = graph.op("Expand", graph.constant(0, "int64"), shape)
    return graph.op("ScatterElements", empty, slots, values, axis=1, reduction=reduction)


def _without_last(graph: "Builder", matrix: str) -> str:
    return graph.op("Slice", matrix, graph.ints(0), graph.ints(-1), graph.ints(1))


def _where(graph: "Builder", condition: str, value: str) -> str:
    """The value where the condition holds, and 0."""
    return graph.op("Where", condition, value, graph.constant(0, "int64"))


def _range(graph: "Builder", text: str, most: int) -> str:
    """The numbers of the bytes, int64 ``[bytes]``."""
    width = graph.op("Shape", text, start=1, end=2)
    return graph.op("Slice", graph.ints(*range(most)), graph.ints(0), width)
