"""How a system and a bundle are drawn: every step of a plan, and names that mean no harm."""

import json
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

import drivetrain as dt
from drivetrain import col
from drivetrain.core.describe import canonical, describe
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.events import expression
from drivetrain.watch import plan
from drivetrain.watch.show import WIDTH, html, plain, text


def drawn(events: Any) -> list[str]:
    return plan.steps(describe(events))


def written(value: Any) -> str:
    return plan.expression(describe(expression.lift(value)))


# -- plans -----------------------------------------------------------------------------------------


def test_a_plan_is_drawn_first_to_last_with_joined_files_below_their_join() -> None:
    weather = dt.CSV("weather.csv", delimiter=";").with_columns(known=col("hour") + dt.minutes(51))
    planes = dt.Parquet(["a.parquet", "b.parquet"]).rename(built="year").drop_duplicates("tail")
    table = (
        dt.CSV("flights.csv", time="at", types={"tail": "string"})
        .where(col("delay").is_not_null() & (col("distance") > 0))
        .with_columns(late=(col("delay") > 15).cast("int64"), minute=col("dep") // 100 * 60)
        .join_asof(weather, time=("at", "known"), by="origin", tolerance=timedelta(hours=3))
        .join(planes, on={"tail": "tail number"}, how="inner", columns=("built",), suffix="_p")
        .drop_nulls()
        .drop("delay")
        .select("late", "minute", "built")
        .split(dt.TimeSplit(validate="2024-01-01", test="2024-02-01"))
    )
    assert drawn(table) == [
        "CSV flights.csv, time='at', types=[['tail', 'string']]",
        "where delay.is_not_null() & (distance > 0)",
        "with late = (delay > 15).cast('int64')",
        "with minute = (dep // 100) * 60",
        "join the last with known < at by origin, at most 3 h old",
        "    CSV weather.csv, delimiter=';'",
        "    with known = hour + 51 min",
        "join (inner) on tail = col('tail number'), takes built, suffix '_p'",
        "    Parquet a.parquet b.parquet",
        "    rename year to built",
        "    drop rows that repeat tail",
        "drop rows with a null in every column",
        "drop delay",
        "select late, minute, built",
        "split by TimeSplit(validate='2024-01-01', test='2024-02-01')",
    ]


def test_every_step_of_a_table_has_a_line_of_its_own() -> None:
    """A step that is new in events is not drawn by its class's fields."""
    from drivetrain.events import join, table

    steps = {
        kind.__name__
        for module in (join, table)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, table.Step)
    }
    assert steps - {"Step", "RowStep", "Lookup"} == set(plan.STEPS)


def test_operators_are_written_as_events_writes_them() -> None:
    assert plan.INFIX == expression.INFIX
    assert plan.FUNCTIONS == expression.FUNCTIONS


@pytest.mark.parametrize(
    ("value", "due"),
    [
        ((col("a") + 1) * -col("b c"), "(a + 1) * (-col('b c'))"),
        (~(col("a") == "x"), "~(a == 'x')"),
        (dt.when(col("a") > 1, "x").otherwise(None), "case(a > 1, 'x', None)"),
        (dt.coalesce(col("a"), 0.5), "coalesce(a, 0.5)"),
        (col("at") - dt.days(2), "at - 2 d"),
        (col("at") - timedelta(microseconds=1500), "at - 0.0015 s"),
        (col("at") + timedelta(0), "at + 0 s"),
        (col("a").is_not_null(), "a.is_not_null()"),
    ],
)
def test_expressions_read_as_they_were_written(value: Any, due: str) -> None:
    assert written(value) == due


def test_a_source_that_is_no_table_is_drawn_by_its_fields() -> None:
    described = {"type": "Clicks", "rows": 5, "seed": 0, "topic": None, "code": "ab" * 32}
    assert plan.steps(described) == ["Clicks(rows=5, seed=0)"]
    assert plan.steps(None) == []


@pytest.mark.parametrize(
    ("value", "due"),
    [
        (dt.Scale("amount"), "Scale('amount')"),
        (dt.Scale("amount", name="much"), "Scale('amount', name='much')"),
        (dt.Bucket("age", bins=4), "Bucket('age', bins=4)"),
        (
            dt.Cross(dt.Index("a"), dt.Bucket("b", bins=2)),
            "Cross(Index('a', min_count=1), Bucket('b', bins=2), size=65536)",
        ),
        (dt.AUC(at_least=0.5), "AUC(at_least=0.5)"),
        (len, "len"),
    ],
)
def test_constructors_read_as_they_were_written(value: Any, due: str) -> None:
    assert plan.constructor(describe(value)) == due


def test_a_drawing_does_not_depend_on_the_order_of_a_manifest_s_keys() -> None:
    for value in (dt.Scale("amount"), dt.Cross(dt.Index("a"), dt.Index("b"), name="ab")):
        described = describe(value)
        assert plan.constructor(json.loads(canonical(described)))[:12] == str(
            plan.constructor(described)[:12]
        )


# -- drawings --------------------------------------------------------------------------------------

HOSTILE = "<script>alert('x')</script>\x1b[2J\n&amp;"
SYSTEM: dict[str, Any] = {
    "name": "made",
    "events": {"type": "Parquet", "paths": [HOSTILE]},
    "features": [{"type": "Scale", "column": HOSTILE, "name": "scaled"}],
    "model": {"type": "code", "name": "Net"},
    "targets": ["bad"],
    "train": {"type": "Single", "epochs": 1, "loss": {"type": "Loss", "words": ["long"] * 40}},
    "compress": [],
    "probes": [{"type": "AUC", "at_least": 0.6}],
}


class Page(HTMLParser):
    """The tags of a page and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.open += [] if tag == "meta" else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def manifest_of(new_bundle: Any) -> Any:
    features = FeatureSchema(
        (
            FeatureField(name="scaled", kind="dense", columns=(HOSTILE,)),
            FeatureField(name="shop", kind="index", cardinality=12345, columns=("shop",)),
            FeatureField(name="words", kind="bag", width=3, cardinality=9, columns=("note",)),
            FeatureField(name="image", kind="tensor", shape=(3, 8, 8), columns=("pixels",)),
        )
    )
    return new_bundle(
        system=SYSTEM,
        features=features,
        metrics={"test/auc": 0.7, HOSTILE: 1.0},
        bounds={"test/auc": (0.6, None), "latency/p99_ms": (None, 5.0)},
        parents={"events": "ab" * 32},
        packages={"torch": "2.13.0"},
    )


def test_what_the_stages_lack_is_not_drawn() -> None:
    stages = plain(SYSTEM)["stages"]
    assert [s["stage"] for s in stages] == ["events", "features", "model", "train", "probes"]


def test_the_terminal_s_drawing_fits_and_shows_no_control_character() -> None:
    columns = Schema((Field("a\x1b[31m", "float64"), Field("image", "float32", (3, 8))))
    lines = text(plain(SYSTEM, schema=columns)).split("\n")
    assert all(line.isprintable() for line in lines)
    assert all(len(line) <= WIDTH for line in lines if "script" not in line)
    assert "probes    AUC(at_least=0.6)" in lines
    assert "targets   bad" in lines
    assert any(line.startswith("train     Single(epochs=1, loss=Loss(") for line in lines)
    assert any(line.split() == ["image", "float32[3,", "8]"] for line in lines)


def test_a_bundle_s_drawing_says_what_goes_in_and_out(new_bundle: Any) -> None:
    bundle = manifest_of(new_bundle)
    out = text(plain(SYSTEM, manifest=bundle.manifest, digest=bundle.digest))
    found = [line.split() for line in out.splitlines()]
    assert ["made", bundle.digest[:12]] in found
    assert ["shop", "index", "1", "of", "12,345", "from", "shop"] in found
    assert ["image", "tensor", "[3,", "8,", "8]", "from", "pixels"] in found
    assert ["test/auc", "0.7", "at", "least", "0.6"] in found
    assert ["late", "float32"] in found
    assert ["torch", "2.13.0"] in found


def test_a_page_shows_hostile_names_as_text(new_bundle: Any) -> None:
    bundle = manifest_of(new_bundle)
    source = html(plain(SYSTEM, manifest=bundle.manifest, digest=bundle.digest))
    page = Page(source)
    assert "script" not in page.tags
    assert "http" not in source
    words = "".join(page.words)
    assert words.count("<script>alert('x')</script>") == 4, (
        "a path, a feature, its column, a metric"
    )
    assert "at least 0.6" in words
    assert bundle.digest in words


def test_the_plain_form_is_json_and_draws_the_same(new_bundle: Any) -> None:
    bundle = manifest_of(new_bundle)
    data = plain(SYSTEM, manifest=bundle.manifest, digest=bundle.digest)
    again = json.loads(json.dumps(data))
    assert text(again) == text(data)
    assert html(again) == html(data)
