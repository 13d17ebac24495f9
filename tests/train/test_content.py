"""Recall by content: TF-IDF as it is defined, fewer numbers, items that nobody had."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

import drivetrain as dt
from drivetrain.core.batch import Batch
from drivetrain.core.catalogue import Catalogue
from drivetrain.core.schema import MISSING_INT
from drivetrain.train.recall.attributes import fewer, of_categories, of_text, side_by_side, tfidf
from drivetrain.train.recall.interactions import Sparse

TITLES = ("Space war", "Space wars II", "A quiet love", "Love letters", "War of love", "Häuser")


def dense(matrix: Sparse) -> np.ndarray:
    found = np.zeros((matrix.rows, matrix.wide))
    found[np.repeat(np.arange(matrix.rows), matrix.lengths), matrix.columns] = matrix.weights
    return found


def cosines(rows: np.ndarray) -> np.ndarray:
    return rows @ rows.T


def test_rows_are_weighted_as_is_usual() -> None:
    found = tfidf(TITLES, of_text)
    due = TfidfVectorizer(analyzer=of_text, sublinear_tf=True).fit_transform(TITLES)
    np.testing.assert_allclose(cosines(dense(found)), cosines(due.toarray()), atol=1e-6)


def test_words_are_in_lower_case_and_come_with_their_parts() -> None:
    assert of_text("War, WAR") == ["war", "#<wa", "#war", "#ar>", "#<war", "#war>", "#<war>"] * 2
    assert of_text("a") == ["a", "#<a>"]
    assert of_text("… !") == []


@pytest.mark.parametrize(
    ("value", "due"),
    [
        ("Action| Drama||", ["Action", "Drama"]),
        (["x", "y|z"], ["x", "y", "z"]),
        (7, ["7"]),
        ([7, MISSING_INT], ["7"]),
        (MISSING_INT, []),
        (float("nan"), []),
        ("", []),
    ],
)
def test_categories_are_names_between_separators_or_numbers(value: Any, due: list[str]) -> None:
    assert of_categories("|")(value) == due


@given(st.lists(st.lists(st.integers(0, 8), max_size=5), min_size=1, max_size=12))
def test_columns_side_by_side_are_one_row_of_length_one(rows: list[list[int]]) -> None:
    terms = of_categories("|")
    blocks = [tfidf(rows, terms), tfidf([row[::2] for row in rows], terms)]
    found = dense(side_by_side(blocks))
    lengths = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(lengths, [bool(row) for row in rows], atol=1e-6)
    wide = blocks[0].wide
    due = np.concatenate([dense(block) for block in blocks], axis=1)
    np.testing.assert_allclose(np.sign(found), np.sign(due))
    np.testing.assert_allclose(found[:, :wide] * lengths[:, None] > 0, due[:, :wide] > 0)


def test_enough_numbers_keep_the_cosines_and_fewer_keep_the_best_of_them() -> None:
    random = np.random.default_rng(0)
    topics = [[f"t{random.integers(0, 6) + 6 * (row % 4)}" for _ in range(6)] for row in range(200)]
    matrix = tfidf(topics, of_categories("|"))
    due = cosines(dense(matrix))
    np.testing.assert_allclose(cosines(fewer(matrix, 24).astype(float)), due, atol=1e-5)
    few = fewer(matrix, 4)
    assert few.shape == (200, 4)
    np.testing.assert_allclose(np.linalg.norm(few, axis=1), 1, rtol=1e-5)
    same = np.equal.outer(np.arange(200) % 4, np.arange(200) % 4)
    assert cosines(few)[same].mean() > 0.9 > 0.1 > abs(cosines(few)[~same].mean())
    assert fewer(matrix, 30)[:, 24:].any() == np.False_
    assert fewer(tfidf(["", ""], of_text), 3).tolist() == [[0] * 3] * 2


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, str]:
    """Rows of users of two tastes, and films of which every fifth is new: nobody had it."""
    random = np.random.default_rng(0)
    number = np.arange(60)
    words = np.array(["space star rocket laser", "love kiss heart letter"])
    title = [" ".join(random.permutation(words[n % 2].split())[:3]) + f" {n}" for n in number]
    genre = [("scifi|action", "romance")[n % 2] for n in number]
    films = pa.table({"film": number, "title": title, "genre": genre, "year": 1990 + number % 3})
    pq.write_table(films, tmp_path / "films.parquet")
    user = np.repeat(np.arange(50), 15)
    old = number[number % 5 != 4]
    film = np.array([random.choice(old[old % 2 == who % 2]) for who in user])
    part = dt.random_parts(user, seed=0)
    recent = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(film, 2)), 2)
    rows = pa.table({"user": user, "film": film, "part": part.tolist(), "recent": recent})
    pq.write_table(rows, tmp_path / "rows.parquet")
    return {name: str(tmp_path / f"{name}.parquet") for name in ("films", "rows")}


def ran(tables: dict[str, str], site: Any, train: Any) -> Any:
    system = dt.System(
        name="films",
        events=dt.Parquet(tables["rows"]).split(dt.ColumnSplit("part")),
        features=(dt.Index("user"),),
        targets=("film",),
        train=train,
        probes=(dt.Ranking(k=20),),
    )
    bundle = dt.run(system, site)
    assert bundle is not None
    return bundle


def content(tables: dict[str, str], **options: Any) -> Any:
    told = {"text": ("title",), "categories": ("genre",), "width": 64, "k": 20, **options}
    return dt.Content(target="film", items=dt.Parquet(tables["films"]), **told)


def test_items_that_nobody_had_are_recommended_at_once(tables: dict[str, str], site: Any) -> None:
    bundle = ran(tables, site, content(tables))
    catalogue = Catalogue.of(bundle.graph)
    assert catalogue is not None
    new = catalogue.items[catalogue.counts == 0].tolist()
    assert np.isfinite(bundle.manifest.metrics["test/novelty@20"])
    assert len(catalogue.items) == 60
    assert new == [n for n in range(60) if n % 5 == 4], "in their own order, behind the others"
    found = bundle.session.run(Batch({"user": np.array([10, 11, 999])}))["items"]
    for row, taste in zip(found[:2].tolist(), (0, 1), strict=True):
        assert {item % 2 for item in row[:14]} == {taste}
        assert len(set(row) & set(new)) > 2
    assert not set(found[2].tolist()) & set(new), "who is not known gets what was had most often"


def test_a_contrast_is_what_somebody_has_more_of_than_everybody(
    tables: dict[str, str], site: Any
) -> None:
    strategy = content(tables, history="recent", seen="keep", k=60, contrast=True)
    bundle = ran(tables, site, strategy)
    catalogue = Catalogue.of(bundle.graph)
    assert catalogue is not None
    items, counts = catalogue.items.tolist(), catalogue.counts
    vectors = strategy.vectors(catalogue.items).astype(float)
    everybody = counts @ vectors / counts.sum()
    recent = np.array([[4, 14], [7, MISSING_INT]])
    found = bundle.session.run(Batch({"user": np.array([999, 998]), "recent": recent}))
    for row, had in enumerate(([4, 14], [7])):
        mean = vectors[[items.index(item) for item in had]].mean(axis=0)
        due = vectors @ (mean - everybody)
        place = [items.index(item) for item in found["items"][row].tolist()]
        np.testing.assert_allclose(found["scores"][row], due[place], rtol=1e-3, atol=1e-5)
        assert (np.diff(found["scores"][row]) <= 0).all()


def test_a_history_of_items_that_nobody_had_finds_what_is_like_them(
    tables: dict[str, str], site: Any
) -> None:
    bundle = ran(tables, site, content(tables, history="recent"))
    recent = np.array([[4, 14], [9, MISSING_INT]])  # nobody had them in training
    asked = Batch({"user": np.array([999, 998]), "recent": recent})
    found = bundle.session.run(asked)["items"][:, :10]
    assert (found % 2).tolist() == [[0] * 10, [1] * 10]
    assert not set(found[0].tolist()) & {4, 14}


def test_all_fused_methods_share_the_wider_catalogue(tables: dict[str, str], site: Any) -> None:
    methods = (
        dt.EASE(target="film", l2=5.0),
        dt.ALS(target="film", factors=4),
        dt.ItemNeighbours(target="film", neighbours=8),
        content(tables),
    )
    fused = dt.Fused(target="film", methods=methods, weights=(1.0, 0.5, 0.5, 2.0), k=60)
    bundle = ran(tables, site, fused)
    found = bundle.session.run(Batch({"user": np.array([10])}))
    listed, scores = found["items"][0], found["scores"][0]
    there = np.isfinite(scores)
    new = {n for n in range(60) if n % 5 == 4}
    assert new <= set(listed[there].tolist())
    own = [n for n in listed[there].tolist() if n in new]
    assert [n % 2 for n in own] == [0] * 6 + [1] * 6
    learnt = ran(tables, site, replace(fused, weights=None)).manifest.metrics
    assert {f"train/weight/{n}" for n in fused.names} <= set(learnt)


def test_a_changed_table_of_items_trains_anew(tables: dict[str, str], site: Any) -> None:
    strategy = content(tables)
    first = ran(tables, site, strategy)
    assert ran(tables, site, strategy).digest == first.digest
    whole = pq.read_table(tables["films"])
    pq.write_table(whole.slice(0, 58), tables["films"])
    catalogue = Catalogue.of(ran(tables, site, strategy).graph)
    assert catalogue is not None
    assert len(catalogue.items) == 59, "of two that are gone one was had"
    fused = dt.Fused(target="film", methods=(dt.Popularity(target="film"), strategy))
    assert fused.tables == strategy.tables == (strategy.items,)


def films(tables: dict[str, str], **columns: Any) -> dict[str, str]:
    table = pq.read_table(tables["films"])
    for name, values in columns.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array(values))
    path = tables["films"].replace("films", "others")
    pq.write_table(table, path)
    return {**tables, "films": path}


def test_tables_that_say_nothing_clear_are_refused(tables: dict[str, str], site: Any) -> None:
    twice = films(tables, film=[0, *range(59)])
    with pytest.raises(ValueError, match=r"Content\.items: found 'two rows of 0'"):
        ran(twice, site, content(twice))
    text = films(tables, film=[f"f{n}" for n in range(60)])
    with pytest.raises(ValueError, match=r"column 'film': found 'string', allowed: int64"):
        ran(text, site, content(text))
    with pytest.raises(ValueError, match=r"column 'year': found 'int64', allowed: text"):
        ran(tables, site, content(tables, text=("year",)))
    with pytest.raises(ValueError, match=r"unknown column 'titel'.*'title'"):
        ran(tables, site, content(tables, text=("titel",)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": (), "categories": ()}, "a column of the items at least"),
        ({"text": "title"}, r"Content\.text: found 'title', allowed: a tuple"),
        ({"width": 0}, r"Content\.width: found 0"),
        ({"separator": ""}, r"Content\.separator"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_declared(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        content({"films": "films.parquet"}, **options)
