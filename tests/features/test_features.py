"""Rules that hold for every feature and every table."""

from typing import Any

import numpy as np
import pytest
import reference as ref
from feature_tables import SCHEMA, made, tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivetrain.core.batch import Batch
from drivetrain.core.measured import Fitted, measure, merge
from drivetrain.core.statistic import Moments, Quantiles, TopK
from drivetrain.features.categorical import Bucket, Id, Index
from drivetrain.features.compile import compile
from drivetrain.features.hashing import Cross, Hash
from drivetrain.features.numeric import Clip, Log, Missing, Raw, Scale
from drivetrain.features.temporal import Cyclic
from drivetrain.features.text import Text

CITY, COUNT, AMOUNT = Index("city", size=3), Index("count", min_count=2), Bucket("amount", bins=4)

FEATURES = (
    Text("title", bins=50, length=8, max_bytes=24),
    Scale("count"),
    CITY,
    Scale("amount"),
    Log("ratio"),
    Hash("city", bins=7),
    Clip("count"),
    Missing("token"),
    COUNT,
    Raw("vector"),
    Cyclic("at"),
    Bucket("count", edges=(0.0, 4.0)),
    Scale("ratio"),
    Log("amount"),
    Hash("count", bins=5),
    Cross(CITY, COUNT, size=1000),
    Clip("amount", low=-1.0, high=3.0),
    Raw("at"),
    Missing("city"),
    AMOUNT,
    Cross(AMOUNT, Hash("token", bins=9, max_bytes=4), CITY, size=11),
    Cyclic("amount", period=24.0),
    Id("ids", size=5),
    Missing("amount"),
    Scale("at"),
    Hash("at", bins=4),
    Cyclic("at", period="weekday", name="week"),
    Raw("amount"),
    Missing("at"),
    Clip("ratio"),
    Id("count", size=3),
    Cyclic("count", period=7.5),
    Hash("title", bins=1000, max_bytes=8),
    Cyclic("at", period=90.5, name="beat"),
    Text("title", bins=9, ngrams=(3, 1), unit="char", length=10, name="letters"),
    Text("token", bins=20, ngrams=(1,), length=3),
    Cyclic("at", period="day_of_year", name="season"),
)


def examples(most: int) -> settings:
    return settings(
        derandomize=True,
        deadline=None,
        max_examples=most,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def fit(batch: Batch, features: Any = FEATURES) -> Fitted:
    with np.errstate(all="ignore"):  # moments of numbers near the end of float64 overflow
        return {s: measure(s, batch) for f in features for s in f.statistics()}


def expected(feature: Any, batch: Batch, fitted: Fitted) -> np.ndarray[Any, Any]:
    """The reference's answer, ``[rows, width]``."""
    columns = [batch[name].tolist() for name in feature.columns]
    rows = [one(feature, row, fitted) for row in zip(*columns, strict=True)]
    return np.array([r if isinstance(r, list | tuple) else [r] for r in rows])


def one(feature: Any, row: Any, fitted: Fitted) -> Any:
    value, column = row[0], feature.columns[0]
    match feature:
        case Scale():
            return ref.scale(value, fitted[Moments(column)])
        case Log():
            return ref.log(value, fitted[Moments(column, of="signed_log")])
        case Clip(low=low, high=high):
            return ref.clip(value, fitted[Quantiles(column)], low, high)
        case Missing():
            return ref.missing(value)
        case Raw():
            return [ref.raw(v) for v in value] if isinstance(value, list) else ref.raw(value)
        case Bucket(bins=bins, edges=edges):
            sketch: Any = fitted.get(Quantiles(column))
            return ref.bucket(value, list(edges or ref.quantile_edges(sketch, bins)))
        case Index(size=size, min_count=least):
            return ref.index(value, fitted[TopK(column)], size, least)
        case Id(size=size):
            values = value if isinstance(value, list) else [value]
            return [ref.identity(v, size) for v in values]
        case Hash(bins=bins, max_bytes=limit):
            return ref.hashed(value, bins, limit)
        case Cyclic(period=period):
            return ref.cyclic(value, period, moment=column == "at")
        case Text(bins=bins, ngrams=ngrams, unit=unit, length=length, max_bytes=limit):
            return ref.text(value, bins, ngrams, unit, length, limit)
        case Cross(features=parts, size=size):
            values = dict(zip(feature.columns, row, strict=True))
            positions = [one(f, [values[c] for c in f.columns], fitted) for f in parts]
            sizes = [f.field(SCHEMA, fitted).cardinality for f in parts]
            return ref.cross(positions, sizes, size)
    raise AssertionError(feature)


@examples(40)
@given(train=tables(), batch=tables())
def test_the_graph_gives_what_the_reference_gives(train: Batch, batch: Batch) -> None:
    fitted = fit(train)
    graph, fields = compile(FEATURES, SCHEMA, fitted)
    found = graph.session(1).run(batch)
    assert found.columns.keys() == set(fields.tensors.names)
    for field in fields.tensors:
        assert found[field.name].shape == (len(batch), *field.shape)
        assert found[field.name].dtype == field.numpy
    assert np.isfinite(found["dense"]).all()
    for feature in FEATURES if len(batch) else ():
        field = fields.field(feature.name)
        want = expected(feature, batch, fitted)
        if field.kind == "dense":
            got = found["dense"][:, fields.slice(feature.name)]
            np.testing.assert_allclose(got, want, rtol=2.5e-7, atol=1e-9, err_msg=feature.name)
            continue
        got = found[field.name] if field.kind == "bag" else found["index"]
        got = got if field.kind == "bag" else got[:, fields.slice(feature.name)]
        np.testing.assert_array_equal(got, want, err_msg=feature.name)
        assert want.min() >= 0
        assert want.max() < field.cardinality


@examples(15)
@given(batch=tables(least=1))
def test_a_row_gives_the_same_alone_and_among_others(batch: Batch) -> None:
    session = compile(FEATURES, SCHEMA, fit(batch))[0].session(1)
    whole = session.run(batch)
    for i in range(len(batch)):
        alone = session.run(batch.slice(i, i + 1))
        for name in whole.columns:
            assert alone[name].tobytes() == whole[name][i : i + 1].tobytes(), name


def test_many_ordinary_rows_give_the_same_alone_and_among_others() -> None:
    batch = made(501)
    session = compile(FEATURES, SCHEMA, fit(batch))[0].session(2)
    whole = session.run(batch)
    for i in range(0, 501, 3):
        alone = session.run(batch.slice(i, i + 1))
        for name in whole.columns:
            assert alone[name].tobytes() == whole[name][i : i + 1].tobytes(), name


@examples(8)
@given(train=tables(), batch=tables())
def test_features_together_give_the_same_bits_as_one_by_one(train: Batch, batch: Batch) -> None:
    fitted = fit(train)
    together, fields = compile(FEATURES, SCHEMA, fitted)
    apart, same = compile(FEATURES, SCHEMA, fitted, together=False)
    assert fields == same
    left, right = together.session(1).run(batch), apart.session(1).run(batch)
    for name in left.columns:
        assert left[name].tobytes() == right[name].tobytes(), name


EXACT = tuple(f for f in FEATURES if not any(isinstance(s, Moments) for s in f.statistics()))


@examples(25)
@given(train=tables(), cuts=st.lists(st.integers(0, 7), max_size=3))
def test_statistics_merged_over_any_partition_compile_to_the_same_graph(
    train: Batch, cuts: list[int]
) -> None:
    stops = [*sorted(min(cut, len(train)) for cut in cuts), len(train)]
    merged: Fitted | None = None
    for start, stop in zip([0, *stops], stops, strict=False):
        part = fit(train.slice(start, stop), EXACT)
        merged = part if merged is None else merge(merged, part)
    assert merged is not None
    whole = compile(EXACT, SCHEMA, fit(train, EXACT))
    again = compile(EXACT, SCHEMA, merged)
    assert whole[0].digest == again[0].digest
    assert whole[1] == again[1]


def test_moments_merged_over_a_partition_give_the_same_to_rounding() -> None:
    features = (Scale("amount"), Log("amount"), Scale("count"), Scale("at"), Log("ratio"))
    train = made(999)
    merged = fit(train.slice(0, 0), features)
    for start in range(0, 999, 111):
        merged = merge(merged, fit(train.slice(start, start + 111), features))
    whole = compile(features, SCHEMA, fit(train, features))[0].run(train)["dense"]
    parts = compile(features, SCHEMA, merged)[0].run(train)["dense"]
    np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f.name)
def test_a_feature_alone_gives_what_it_gives_among_others(feature: Any) -> None:
    batch = made(20)
    fitted = fit(batch)
    alone, fields = compile([feature], SCHEMA, fitted)
    every, all_fields = compile(FEATURES, SCHEMA, fitted)
    field = fields.field(feature.name)
    name = field.name if field.kind in ("bag", "tensor") else field.kind
    got, want = alone.run(batch)[name], every.run(batch)[name]
    want = want if name == field.name else want[:, all_fields.slice(field.name)]
    np.testing.assert_array_equal(got, want)
