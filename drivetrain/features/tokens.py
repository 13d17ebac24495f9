"""The feature that turns a text into the tokens of a WordPiece vocabulary, as BERT reads it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from drivetrain.core.schema import FeatureField, Schema
from drivetrain.features.column import OneColumn, place, positive
from drivetrain.features.wordpiece import WordPiece

if TYPE_CHECKING:
    from drivetrain.core.measured import Fitted
    from drivetrain.features.builder import Builder


def _told(vocabulary: str | Path) -> str:
    return WordPiece.read(vocabulary).digest


@dataclass(frozen=True)
class Tokens(OneColumn):
    """The tokens of a text: ``[CLS]``, the pieces of its words, ``[SEP]``; 0 pads them.

    As ``BertTokenizerFast`` of Hugging Face gives them, to the last token, but that what looks
    like a special token in a text (``[SEP]``) is text, as with its ``split_special_tokens``.
    Control characters vanish, accents and capitals go (where the vocabulary was made so), white
    space parts words, punctuation and Chinese characters are words of their own, and each word is
    cut into the longest pieces that the vocabulary has, from the left (Wu et al., "Google's
    Neural Machine Translation System", 2016; Devlin et al., "BERT", 2018).

    All of it is integer arithmetic in the graph over the text's bytes, so a server needs neither
    the vocabulary's file nor a tokenizer. Pieces are found by 64-bit hashes of their characters.

    Attributes:
        vocabulary: a ``tokenizer.json``, a ``vocab.txt``, or a directory that holds one. Its
            content is declared, not its place.
        length: positions, with ``[CLS]`` and ``[SEP]``; further pieces are cut off.
        max_bytes: how many UTF-8 bytes of the text are read; by default 32 for each position.
    """

    vocabulary: str | Path = field(metadata={"as": _told})
    length: int = 128
    max_bytes: int = 0

    takes: ClassVar[tuple[str, ...]] = ("string",)
    instead: ClassVar[str] = "Hash and Text take bytes, Scale and Bucket numbers"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(f"{place(self)}: length", self.length, least=3)
        if self.max_bytes == 0:
            object.__setattr__(self, "max_bytes", 32 * self.length)
        positive(f"{place(self)}: max_bytes", self.max_bytes)

    @property
    def wordpiece(self) -> WordPiece:
        """The vocabulary.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is of another kind.
        """
        return WordPiece.read(self.vocabulary)

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """A bag in the order of the text."""
        self.source(schema)
        return FeatureField(
            name=self.name,
            kind="bag",
            width=self.length,
            cardinality=self.wordpiece.size,
            columns=self.columns,
        )

    def nodes(self, graph: "Builder", schema: Schema, fitted: "Fitted") -> str:
        """Int64 ``[rows, length]``."""
        from drivetrain.features.wordpiece_nodes import tokens

        return tokens(graph, self.column, self.max_bytes, self.length, self.wordpiece)
