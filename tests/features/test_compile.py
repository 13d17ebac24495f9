"""Compiling features: blocks, order, errors, and features from outside the package."""

import sys
from dataclasses import dataclass
from subprocess import run
from typing import Any

import numpy as np
import pytest
from feature_tables import SCHEMA, made

from drivetrain.core.batch import Batch
from drivetrain.core.measured import Fitted, measure
from drivetrain.core.schema import FeatureField, Field, Schema
from drivetrain.core.seams import Feature
from drivetrain.core.statistic import Moments
from drivetrain.features.categorical import Bucket, Id, Index
from drivetrain.features.compile import compile
from drivetrain.features.hashing import Cross, Hash
from drivetrain.features.image import Image
from drivetrain.features.numeric import Clip, Log, Missing, Raw, Scale
from drivetrain.features.temporal import Cyclic
from drivetrain.features.text import Text

BATCH = made(40)


def fit(*features: Any) -> Fitted:
    return {s: measure(s, BATCH) for f in features for s in f.statistics()}


@dataclass(frozen=True)
class Ratio:
    """A feature from outside the package: one column over another's mean."""

    over: str
    under: str
    name: str = "ratio_of_two"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.over, self.under)

    def statistics(self) -> tuple[Moments, ...]:
        return (Moments(self.under),)

    def field(self, schema: Schema, fitted: Fitted) -> FeatureField:
        return FeatureField(name=self.name, kind="dense", columns=self.columns)

    def nodes(self, graph: Any, schema: Schema, fitted: Fitted) -> str:
        value: Any = fitted[Moments(self.under)]
        mean = graph.constant(value.mean, "float64")
        ratio = graph.cast(graph.op("Div", graph.column(self.over), mean), "float32")
        return graph.op("Reshape", ratio, graph.ints(-1, 1))


def test_a_feature_from_outside_with_nodes_alone_takes_its_declared_place() -> None:
    batch = BATCH.with_columns({"amount": np.arange(40.0)})
    outside = Ratio("amount", "count")
    assert isinstance(outside, Feature)
    features = [Scale("amount"), outside, Scale("count"), Index("city")]
    fitted = {s: measure(s, batch) for f in features for s in f.statistics()}
    graph, fields = compile(features, SCHEMA, fitted)
    assert [f.name for f in fields.of("dense")] == ["amount_scale", "ratio_of_two", "count_scale"]
    mean: Any = fitted[Moments("count")]
    want = (np.arange(40.0) / mean.mean).astype(np.float32)
    np.testing.assert_array_equal(graph.run(batch)["dense"][:, 1], want)


def test_a_cross_takes_an_index_feature_from_outside() -> None:
    class Parity(Ratio):
        def statistics(self) -> tuple[Moments, ...]:
            return ()

        def field(self, schema: Schema, fitted: Fitted) -> FeatureField:
            return FeatureField(name=self.name, kind="index", cardinality=3)

        def nodes(self, graph: Any, schema: Schema, fitted: Fitted) -> str:
            two, one = graph.constant(2, "int64"), graph.constant(1, "int64")
            rest = graph.op("Add", graph.op("Mod", graph.column("count"), two), one)
            return graph.op("Reshape", rest, graph.ints(-1, 1))

    cross = Cross(Parity("count", "count"), Id("count", size=10), size=1000)
    graph, _ = compile([cross], SCHEMA, {})
    count = np.array([0, 1, 7, 10])
    found = graph.run(Batch({"count": count}))["index"][:, 0].tolist()
    assert found == [1 + 0 * 10 + 0, 1 + 1 * 10 + 1, 1 + 1 * 10 + 7, 0]


def test_blocks_keep_the_declared_order_whatever_compiles_together() -> None:
    features = [Log("amount"), Scale("count"), Log("ratio"), Scale("amount"), Missing("city")]
    graph, fields = compile(features, SCHEMA, fit(*features))
    assert [f.name for f in fields.features] == [f.name for f in features]
    block = graph.run(BATCH)["dense"]
    for feature in features:
        alone, _ = compile([feature], SCHEMA, fit(feature))
        column = block[:, fields.slice(feature.name)]
        np.testing.assert_array_equal(column, alone.run(BATCH)["dense"])


def test_features_of_a_class_share_their_nodes() -> None:
    wide = Schema(tuple(Field(f"x{i}", "float64") for i in range(50)))
    columns = {f"x{i}": np.arange(9.0) + i for i in range(50)}
    features = [Scale(name) for name in columns]
    fitted = {Moments(n): measure(Moments(n), Batch(columns)) for n in columns}
    few, _ = compile(features[:2], wide, fitted)
    many, _ = compile(features, wide, fitted)
    assert len(many.proto.graph.node) == len(few.proto.graph.node)


def test_a_vocabulary_that_two_features_use_is_in_the_graph_once() -> None:
    index = Index("city")
    features = [index, Cross(index, Hash("token", bins=5)), Index("city", name="again")]
    graph, _ = compile(features, SCHEMA, fit(*features))
    assert [n.op_type for n in graph.proto.graph.node].count("LabelEncoder") == 1


def test_each_reader_of_a_text_sees_as_many_bytes_as_it_asked_for() -> None:
    features = [Hash("title", 99, max_bytes=2), Hash("title", 99, max_bytes=5, name="more")]
    graph, _ = compile(features, SCHEMA, {})
    titles = np.array(["abcde", "abxxx", "abcdeZ", "ab"], dtype=object)
    first, second = graph.run(Batch({"title": titles}))["index"].T.tolist()
    assert len(set(first)) == 1
    assert second[0] == second[2]
    assert len(set(second)) == 3


def test_compiling_twice_gives_the_same_bytes() -> None:
    features = [Scale("amount"), Index("city"), Text("title"), Cyclic("at"), Bucket("ratio")]
    left = compile(features, SCHEMA, fit(*features))
    right = compile(features, SCHEMA, fit(*features))
    assert left[0].model == right[0].model


def test_an_output_that_has_a_column_s_name_is_refused() -> None:
    schema = Schema((Field("index", "string"),))
    column = np.array(["a", "b"], dtype=object)
    feature = Index("index")
    fitted = {s: measure(s, Batch({"index": column})) for s in feature.statistics()}
    with pytest.raises(ValueError, match="'index' is both a raw column and an output"):
        compile([feature], schema, fitted)


def test_a_mistyped_column_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'amuont' in feature Scale.*Did you mean 'amount'"):
        compile([Scale("amuont")], SCHEMA, {})


def test_a_statistic_that_was_not_fitted_is_named() -> None:
    with pytest.raises(ValueError, match=r"Scale\('amount_scale'\) needs Moments"):
        compile([Scale("amount")], SCHEMA, {})


def test_two_features_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="'amount_raw' is declared twice"):
        compile([Raw("amount"), Raw("amount")], SCHEMA, {})


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        (Scale("city"), "'city': found 'string'.*Index, Hash and Text take strings"),
        (Log("token"), "'token': found 'bytes'"),
        (Clip("title"), "'title': found 'string'"),
        (Bucket("city"), "'city': found 'string'"),
        (Raw("city"), "Image takes encoded images"),
        (Cyclic("city"), "'city': found 'string'"),
        (Cyclic("count"), "period='hour'.*period=24.0"),
        (Index("amount"), "'amount': found 'float64'.*Bucket and Scale"),
        (Index("at"), "'at': found 'timestamp'"),
        (Hash("ratio", bins=3), "'ratio': found 'float32'.*Bucket and Scale"),
        (Text("count"), "'count': found 'int64'.*Scale and Bucket"),
        (Id("city", size=3), "'city': found 'string'"),
        (Image("city", 2, 2), "'city': found 'string'"),
        (Scale("vector"), r"'vector': found \(3,\).*Raw takes arrays"),
        (Index("ids"), r"'ids': found \(2,\)"),
        (Cross(Index("city"), Scale("amount")), "features of one index column"),
        (Cross(Index("city"), Id("ids", size=3)), "2 × index"),
    ],
    ids=lambda x: x.name if isinstance(x, Feature) else "",
)
def test_a_column_of_the_wrong_type_is_named(feature: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compile([feature], SCHEMA, fit(Index("city"), Scale("amount")) | _any(feature))


def _any(feature: Any) -> Fitted:
    """Some value for each statistic, as the error must come before it is looked at."""
    value = measure(Moments("amount"), BATCH)
    return {s: value for s in feature.statistics() if s.column not in ("city", "amount")} | {
        s: value for s in feature.statistics() if not isinstance(feature, Cross)
    }


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Scale("amount", name="not a name"), "Python identifier"),
        (lambda: Clip("amount", low=2.0, high=1.0), "at most high"),
        (lambda: Clip("amount", low=float("nan")), "low"),
        (lambda: Bucket("amount", bins=1), "bins: found 1"),
        (lambda: Bucket("amount", edges=(2.0, 1.0)), "ascending"),
        (lambda: Bucket("amount", edges=()), "ascending"),
        (lambda: Index("city", size=0), "size: found 0"),
        (lambda: Index("city", min_count=0), "min_count: found 0"),
        (lambda: Id("count", size=0), "size: found 0"),
        (lambda: Hash("city", bins=0), "bins: found 0"),
        (lambda: Hash("city", bins=True), "bins: found True"),
        (lambda: Cross(Index("city")), "two features or more"),
        (lambda: Cross(Index("city"), Index("count"), size=1), "size: found 1"),
        (lambda: Cyclic("at", period="weekdays"), "Did you mean 'weekday'"),
        (lambda: Cyclic("at", period=0.0), "period: found 0.0"),
        (lambda: Text("title", bins=1), "bins: found 1"),
        (lambda: Text("title", ngrams=()), "ngrams"),
        (lambda: Text("title", ngrams=(0,)), "ngrams: found 0"),
        (lambda: Text("title", unit="line"), "'word' or 'char'"),  # pyright: ignore
        (lambda: Text("title", length=0), "length: found 0"),
    ],
)
def test_a_wrong_option_is_named_when_it_is_declared(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_default_names_are_identifiers_and_differ_by_class() -> None:
    assert Scale("amount").name == "amount_scale"
    assert Log("dep delay").name == "dep_delay_log"
    assert Index("2nd").name == "_2nd_index"
    assert Cross(Index("a"), Hash("b", 3)).name == "a_index_b_hash_cross"
    assert Scale("amount", name="x").name == "x"


def test_declaring_features_imports_neither_numpy_nor_onnx() -> None:
    modules = "numeric categorical hashing temporal text image"
    lines = "; ".join(f"import drivetrain.features.{name}" for name in modules.split())
    heavy = "{'numpy', 'onnx', 'onnxruntime', 'torch', 'PIL', 'pyarrow', 'duckdb'}"
    code = f"import sys; {lines}; print({heavy} & set(sys.modules))"
    found = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
