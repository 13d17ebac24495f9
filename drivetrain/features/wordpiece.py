"""WordPiece vocabularies: read from where Hugging Face keeps them, and as tables of hashes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from drivetrain.core.errors import wrong
from drivetrain.core.polynomial import BASE, WORD, signed

INSIDE = "##"
"""What a piece begins with that goes on with a word."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LONGEST_WORD = 100
"""The most characters of a word, by default; a longer one is unknown."""


@dataclass(frozen=True)
class WordPiece:
    """A vocabulary, and what is done to a text before it is looked into.

    Attributes:
        pieces: the token of each piece; 0 is ``[PAD]``.
        lowercase: whether letters are taken in lower case.
        strip_accents: whether they are taken without accents.
        longest_word: the most characters of a word that is not unknown.
    """

    pieces: Mapping[str, int]
    lowercase: bool = True
    strip_accents: bool = True
    longest_word: int = LONGEST_WORD

    @classmethod
    def read(cls, path: str | Path) -> "WordPiece":
        """A ``tokenizer.json``, a ``vocab.txt``, or a directory that holds one of them.

        Beside a ``vocab.txt`` a ``tokenizer_config.json`` says what is done to letters; without
        one they are taken in lower case and without accents.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no BERT tokenizer of this kind; says what differs.
        """
        path = _file(Path(path))
        beside = path.with_name("tokenizer_config.json")
        found = [each.stat() for each in (path, beside) if each.exists() or each == path]
        return _read(path, *(n for s in found for n in (s.st_mtime_ns, s.st_size)))

    @property
    def size(self) -> int:
        """How many tokens there are: one more than the greatest."""
        return max(self.pieces.values()) + 1

    @property
    def digest(self) -> str:
        """SHA-256 of all that makes a difference, hexadecimal."""
        told = json.dumps([dict(self.pieces), *list(vars(self).values())[1:]], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def alphabet(self) -> str:
        """The characters of the pieces, each once, in order."""
        return "".join(sorted({c for piece in self.pieces for c in _split(piece)[1]}))

    def prefixes(self, alphabet: str) -> dict[int, dict[int, int]]:
        """All beginnings of pieces: by their length, the hash of each and what it stands for.

        It stands for the longest piece that it begins with: ``1 + (length << 32 | token)``, and
        1 where there is none.

        Args:
            alphabet: the number of a character in it, plus 2, is its symbol.
        """
        symbol = {character: i + 2 for i, character in enumerate(alphabet)}
        codes = [WORD + code for code in codes_of(len(alphabet) + 2)]
        powers = [pow(BASE, i, WORD) for i in range(max(map(len, self.pieces)))]
        token = {_split(piece): number for piece, number in self.pieces.items()}
        found: dict[int, dict[int, int]] = {}
        for begins, text in token:
            total, longest = 0, 1
            for i, character in enumerate(text):
                first = len(codes) // 2 if begins and i == 0 else 0
                total = (total + codes[symbol[character] + first] * powers[i]) % WORD
                number = token.get((begins, text[: i + 1]))
                if number is not None:
                    longest = 1 + (i + 1 << 32 | number)
                found.setdefault(i + 1, {})[signed(total)] = longest
        return found


def codes_of(symbols: int) -> list[int]:
    """A random int64 for each symbol, 0 for none, and others for those that begin a word.

    By SplitMix64 (Steele, Lea and Flood, 2014), so the same everywhere.
    """
    codes: list[int] = []
    for number in range(2 * symbols):
        bits = (number + 1) * 0x9E3779B97F4A7C15 % WORD
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ bits >> shift) * factor % WORD
        codes.append(0 if number % symbols == 0 else signed(bits ^ bits >> 31))
    return codes


def _split(piece: str) -> tuple[bool, str]:
    """Whether a piece begins a word, and its characters."""
    inside = piece.startswith(INSIDE) and len(piece) > len(INSIDE)
    return not inside, piece[len(INSIDE) :] if inside else piece


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("tokenizer.json", "vocab.txt"):
        if (path / name).exists():
            return path / name
    raise FileNotFoundError(f"{path} holds neither tokenizer.json nor vocab.txt")


@lru_cache(maxsize=8)
def _read(path: Path, *version: int) -> WordPiece:
    """What lies in a file; ``version`` tells one content of it from another."""
    text = path.read_text(encoding="utf-8")
    found = _of_json(path, text) if path.suffix == ".json" else _of_lines(path, text)
    for name in SPECIAL:
        if name not in found.pieces:
            raise wrong(str(path), "no " + name, f"a vocabulary with {', '.join(SPECIAL)}")
    if found.pieces["[PAD]"] != 0:
        raise wrong(f"{path}: [PAD]", found.pieces["[PAD]"], "0, which pads a bag")
    return found


def _of_lines(path: Path, text: str) -> WordPiece:
    pieces = {piece: number for number, piece in enumerate(text.rstrip("\n").split("\n"))}
    beside = path.with_name("tokenizer_config.json")
    said = json.loads(beside.read_bytes()) if beside.exists() else {}
    lowercase = bool(said.get("do_lower_case", True))
    if said.get("tokenize_chinese_chars", True) is not True:
        raise wrong(f"{beside}: tokenize_chinese_chars", False, "true")
    return WordPiece(pieces, lowercase, _accents(said.get("strip_accents"), lowercase))


def _of_json(path: Path, text: str) -> WordPiece:
    said: dict[str, Any] = json.loads(text)
    model = said.get("model") or {}
    normalizer = said.get("normalizer") or {}
    parts = {
        "model.type": (model.get("type", "WordPiece"), ("WordPiece",)),
        "model.continuing_subword_prefix": (model.get("continuing_subword_prefix"), (INSIDE,)),
        "model.unk_token": (model.get("unk_token"), ("[UNK]",)),
        "normalizer.type": (normalizer.get("type"), ("BertNormalizer",)),
        "normalizer.clean_text": (normalizer.get("clean_text"), (True,)),
        "normalizer.handle_chinese_chars": (normalizer.get("handle_chinese_chars"), (True,)),
        "pre_tokenizer.type": (_type(said, "pre_tokenizer"), ("BertPreTokenizer",)),
        "post_processor.type": (
            _type(said, "post_processor"),
            ("TemplateProcessing", "BertProcessing"),
        ),
        "post_processor": (_frame(said.get("post_processor") or {}), ("[CLS] A [SEP]",)),
    }
    for name, (found, allowed) in parts.items():
        if found not in allowed:
            raise wrong(f"{path}: {name}", found, " or ".join(map(repr, allowed)))
    added: Sequence[Mapping[str, Any]] = said.get("added_tokens") or ()
    plain = [token["content"] for token in added if not token.get("special")]
    if plain:
        raise wrong(f"{path}: added_tokens", plain, "special tokens only")
    lowercase = bool(normalizer.get("lowercase", True))
    return WordPiece(
        model["vocab"],
        lowercase,
        _accents(normalizer.get("strip_accents"), lowercase),
        int(model.get("max_input_chars_per_word", LONGEST_WORD)),
    )


def _frame(processor: Mapping[str, Any]) -> str:
    """What is put around a text, in order."""
    if processor.get("type") == "BertProcessing":
        return f"{processor['cls'][0]} A {processor['sep'][0]}"
    return " ".join(each["id"] for part in processor.get("single") or () for each in part.values())


def _type(said: Mapping[str, Any], part: str) -> str | None:
    return (said.get(part) or {}).get("type")


def _accents(said: bool | None, lowercase: bool) -> bool:
    """Where nothing is said, accents go with the capitals."""
    return lowercase if said is None else said
