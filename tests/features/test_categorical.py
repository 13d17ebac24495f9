"""Positions: vocabularies, ids, intervals, hashes, crosses and bags."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from drivetrain.core.batch import Batch
from drivetrain.core.measured import measure
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.statistic import TopK
from drivetrain.core.values import column_of
from drivetrain.features.categorical import Bucket, Id, Index
from drivetrain.features.compile import compile
from drivetrain.features.hashing import Cross, Hash
from drivetrain.features.text import Text

SCHEMA = Schema(
    (Field("s", "string"), Field("n", "int64"), Field("x", "float64"), Field("b", "bytes"))
)


def rows(**columns: list[Any]) -> Batch:
    return Batch({name: column_of(values, SCHEMA.field(name)) for name, values in columns.items()})


def index(feature: Any, train: Batch, batch: Batch) -> list[int]:
    """Positions, held to the cardinality that the feature says."""
    fitted = {s: measure(s, train) for s in feature.statistics()}
    graph, fields = compile([feature], SCHEMA, fitted)
    found = graph.run(batch)["index"]
    assert found.max(initial=0) < fields.cardinalities[0]
    return found[:, 0].tolist()


def test_an_unseen_category_is_unknown_and_an_empty_one_missing() -> None:
    train = rows(s=["b", "a", "b", "", "c"])
    found = index(Index("s"), train, rows(s=["b", "a", "c", "new", None, "B", "a "]))
    assert found == [2, 3, 4, 1, 0, 1, 1]


def test_rare_values_and_those_beyond_the_size_are_unknown() -> None:
    train = rows(s=["a", "a", "a", "b", "b", "c"])
    batch = rows(s=["a", "b", "c"])
    assert index(Index("s", min_count=2), train, batch) == [2, 3, 1]
    assert index(Index("s", size=1), train, batch) == [2, 1, 1]


def test_a_large_size_is_counted_in_full() -> None:
    assert Index("s", size=3_000_000).statistics() == (TopK("s", 3_000_000),)
    assert Index("s", size=10).statistics() == Index("s").statistics() == (TopK("s"),)


def test_integers_have_a_vocabulary_to_the_last_unit() -> None:
    train = rows(n=[7, 7, 2**63 - 1, None, MISSING_INT + 1])
    batch = rows(n=[7, 2**63 - 1, 2**63 - 2, MISSING_INT + 1, None])
    assert index(Index("n"), train, batch) == [2, 4, 1, 3, 0]


@pytest.mark.parametrize("train", [rows(s=[]), rows(s=[None, None])])
def test_a_column_without_values_has_an_empty_vocabulary(train: Batch) -> None:
    assert index(Index("s"), train, rows(s=["a", None])) == [1, 0]


def test_ids_outside_their_range_are_missing() -> None:
    batch = rows(n=[0, 2, 3, -1, None, 2**63 - 1])
    assert index(Id("n", size=3), rows(), batch) == [1, 3, 0, 0, 0, 0]


def test_buckets_hold_about_as_many_rows_each() -> None:
    train = rows(x=[float(i) for i in range(1000)])
    found = index(Bucket("x", bins=4), train, train)
    assert sorted(set(found)) == [1, 2, 3, 4]
    assert np.bincount(found)[1:].tolist() == pytest.approx([250] * 4, abs=3)


def test_a_value_that_fills_several_quantiles_is_one_edge() -> None:
    feature = Bucket("x", bins=10)
    train = rows(x=[0.0] * 50 + [7.0] * 30 + [float(i) for i in range(8, 28)])
    fitted = {s: measure(s, train) for s in feature.statistics()}
    edges = feature.inner_edges(fitted)
    assert edges[0] == 7.0
    assert all(b - a > 0.5 for a, b in pairwise(edges))
    assert index(feature, train, rows(x=[-5.0, 0.0, 6.9, 7.0])) == [1, 1, 1, 2]


@pytest.mark.parametrize("values", [[], [None], [float("inf")], [3.0, 3.0]])
def test_a_column_of_no_value_or_one_has_one_bucket(values: list[Any]) -> None:
    batch = rows(x=[3.0, -1.0, None, float("-inf")])
    assert index(Bucket("x"), rows(x=values), batch) == [1, 1, 0, 0]


def test_given_edges_put_their_own_value_above() -> None:
    found = index(Bucket("x", edges=(0.0, 1.0)), rows(), rows(x=[-0.5, 0.0, 0.9, 1.0, None]))
    assert found == [1, 2, 2, 3, 0]


def test_the_hash_is_the_same_whatever_else_is_in_the_batch() -> None:
    feature = Hash("s", bins=1000)
    alone = [index(feature, rows(), rows(s=[s]))[0] for s in ("a", "Köln", "")]
    found = index(feature, rows(), rows(s=["a", "Köln", "", "x" * 900]))
    assert found[:3] == alone
    assert alone[2] == 0


def test_hashes_never_change() -> None:
    """Bundles that are served hold models that learned these positions."""
    words = index(Hash("s", bins=10**9), rows(), rows(s=["a", "drivetrain", "東京"]))
    numbers = index(Hash("n", bins=10**9), rows(), rows(n=[0, -1, 2**63 - 1]))
    assert words == [935493475, 264590475, 302234842]
    assert numbers == [1, 414464290, 17149931]


def test_hashes_spread_evenly() -> None:
    values = [f"user-{i}" for i in range(20_000)]
    found = np.bincount(index(Hash("s", bins=100), rows(), rows(s=values)), minlength=101)[1:]
    chi_squared = float(np.square(found - 200).sum() / 200)
    assert 60 < chi_squared < 150  # 99 degrees of freedom
    found = index(Hash("n", bins=100), rows(), rows(n=list(range(20_000))))
    counts = np.bincount(found, minlength=101)[1:]
    assert 60 < float(np.square(counts - 200).sum() / 200) < 150


def test_bytes_and_strings_of_the_same_bytes_have_the_same_hash() -> None:
    text = index(Hash("s", bins=10**6), rows(), rows(s=["Köln"]))
    assert index(Hash("b", bins=10**6), rows(), rows(b=["Köln".encode()])) == text


def test_a_small_cross_gives_each_combination_its_own_position() -> None:
    feature = Cross(Id("n", size=3), Bucket("x", edges=(0.0,)), size=7)
    batch = rows(n=[0, 0, 1, 1, 2, 2, None, 0], x=[-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 0.0, None])
    assert index(feature, rows(), batch) == [1, 2, 3, 4, 5, 6, 0, 0]


def test_a_large_cross_is_hashed_below_its_size() -> None:
    feature = Cross(Id("n", size=2**40), Hash("s", bins=2**40), Id("n", size=2**40), size=50)
    batch = rows(n=list(range(500)), s=[f"v{i}" for i in range(500)])
    found = index(feature, rows(), batch)
    assert min(found) >= 1
    assert len(set(found)) == 49


def bag(feature: Text, *texts: str) -> list[list[int]]:
    graph, fields = compile([feature], SCHEMA, {})
    found = graph.run(rows(s=list(texts)))[feature.name]
    assert found.max(initial=0) < fields.field(feature.name).cardinality
    return found.tolist()


def test_words_are_the_same_in_any_case_and_between_any_signs() -> None:
    feature = Text("s", bins=10**9, ngrams=(1,), length=3)
    plain, shouted, quoted = bag(feature, "two words", "TWO  Words!", '"two"—words')
    assert plain == shouted
    assert plain[2] == 0
    assert quoted[0] == plain[0]


def test_pairs_follow_single_words_and_know_their_order() -> None:
    feature = Text("s", bins=10**9, ngrams=(1, 2), length=5)
    ab, ba = bag(feature, "a b", "b a")
    assert ab[:3] == [ba[1], ba[0], 0]
    assert ab[3] != ba[3]
    assert ab[3] not in ab[:2]
    assert ab[4] == ba[4] == 0


def test_words_beyond_the_length_are_left_out() -> None:
    feature = Text("s", bins=10**9, ngrams=(1,), length=2)
    assert bag(feature, "a b c d")[0] == bag(feature, "a b")[0]


def test_characters_are_code_points() -> None:
    feature = Text("s", bins=10**9, ngrams=(1,), unit="char", length=4)
    first, second = bag(feature, "東a東", "a")
    assert first[0] == first[2]
    assert first[1] == second[0]
    assert first[3] == 0
    assert len(set(first)) == 3


def test_a_text_without_words_is_an_empty_bag() -> None:
    assert bag(Text("s", length=4), "", " .,! ") == [[0] * 4] * 2


def test_n_grams_that_no_text_has_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes: found 2"):
        Text("s", ngrams=(3,), max_bytes=2)


def test_a_kind_of_n_gram_without_room_is_left_out() -> None:
    feature = Text("s", bins=10**9, ngrams=(2, 1), length=1)
    assert bag(feature, "a b")[0] == bag(Text("s", bins=10**9, ngrams=(1,), length=1), "a")[0]
