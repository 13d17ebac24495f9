"""The step that gives rows their windows: what is declared, what is read, what a server keeps."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivetrain.core.describe import digest
from drivetrain.core.schema import Field
from drivetrain.core.window import Window
from drivetrain.events import Parquet, TimeSplit, col
from drivetrain.events.duckdb import Limits, engine
from drivetrain.events.plan import compile_plan
from drivetrain.events.windows import kept

SPENT = Window("amount", by="card", stat="sum", over="1h")
BUYS = Window(by=("card", "shop"), stat="count")
RETURNED = Window("amount", by="card", stat="recent", rows=2, known="back_at")


@pytest.fixture
def events(tmp_path):
    """Payments in a file, with the column that says when each happened."""
    moment = pa.array([0], pa.timestamp("us"))
    columns = {"at": moment, "back_at": moment, "card": ["a"], "shop": ["s"], "amount": [1]}
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    return Parquet(tmp_path / "events.parquet", time="at")


def test_columns_are_added_behind_the_others_with_their_types(events):
    made = events.with_windows(spent=SPENT, buys=BUYS, returned=RETURNED).schema
    assert made.names == (*events.schema.names, "spent", "buys", "returned")
    assert made.fields[5:] == (
        Field("spent", "float64"),
        Field("buys", "int64"),
        Field("returned", "int64", (2,)),
    )


def test_another_window_is_another_declaration(events):
    one = digest(events.with_windows(spent=SPENT))
    assert one == digest(events.with_windows(spent=SPENT))
    assert one != digest(events.with_windows(spent=BUYS))
    assert one != digest(events.with_windows(spent=SPENT, time="back_at"))
    assert one != digest(events.with_windows(spent=SPENT, lateness="1m"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda t: t.with_windows(), "with_windows: found 'no column'"),
        (lambda t: t.with_windows(spent="sum"), r"with_windows\(spent=…\): found 'sum'"),
        (lambda t: t.with_windows(spent=SPENT, lateness="soon"), "lateness: found 'soon'"),
        (
            lambda t: Parquet(t.paths).with_windows(spent=SPENT),
            "with_windows time: found None, allowed: a column, or time= on what",
        ),
    ],
)
def test_wrong_declaration_is_an_error_at_once(events, build, message):
    with pytest.raises(ValueError, match=message):
        build(events)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ({"time": "card", "spent": SPENT}, "time 'card': found 'string', allowed: timestamps"),
        ({"spent": Window("amont", by="card", stat="sum")}, "Did you mean 'amount'"),
        ({"spent": Window("amount", by="amount_", stat="sum")}, "Did you mean 'amount'"),
        ({"spent": Window("shop", by="card", stat="sum")}, "numbers for sum"),
        ({"amount": SPENT}, "column 'amount': found 'one that is there', allowed: a new name"),
    ],
)
def test_wrong_columns_are_found_by_looking_at_the_schema(events, windows, message):
    with pytest.raises(ValueError, match=message):
        _ = events.with_windows(**windows).schema


def test_only_what_needed_windows_read_is_read(events):
    table = events.with_windows(spent=SPENT, buys=BUYS, returned=RETURNED)
    reads = {
        ("spent",): {"at", "card", "amount"},
        ("buys",): {"at", "card", "shop"},
        ("returned", "shop"): {"at", "card", "amount", "back_at", "shop"},
        ("shop",): {"shop"},
    }
    with engine(Limits(threads=1)) as running:
        for columns, needed in reads.items():
            plan = compile_plan(table, columns, running, Limits(), split=False)
            assert set(plan.reads.names) == needed
            assert plan.stateful == (columns != ("shop",))


# -- what a server keeps ---------------------------------------------------------------------------


def test_windows_that_reach_the_features_are_kept_with_what_they_read(events):
    table = (
        events.with_columns(card=col("card").upper())
        .with_windows(spent=SPENT, buys=BUYS, returned=RETURNED)
        .where(col("amount") > 0)
        .with_columns(large=col("amount") > 100)
        .drop("back_at")
        .split(TimeSplit(validate="2024-01-01", test="2024-02-01"))
    )
    found = kept(table, ("shop", "returned", "large", "spent"))
    assert found is not None
    assert found.windows.names == ("spent", "returned")
    assert found.windows.asked == ("at", "card")
    assert found.schema.names == ("at", "card", "amount", "back_at")
    assert found.among(("spent",)).windows.names == ("spent",)
    assert found.among(("spent",)).schema.names == ("at", "card", "amount")
    assert found.among(("shop",)) is None


def test_nothing_is_kept_where_no_feature_reads_a_window(events):
    assert kept(events, ("amount",)) is None
    assert kept(events.with_windows(spent=SPENT), ("amount",)) is None
    dropped = events.with_windows(spent=SPENT).drop("spent").with_columns(spent=col("amount"))
    assert kept(dropped, ("spent",)) is None
    replaced = events.with_windows(spent=SPENT).with_columns(spent=col("amount"))
    assert kept(replaced, ("spent",)) is None
    chosen = events.with_windows(spent=SPENT).select("amount").with_columns(spent=col("amount"))
    assert kept(chosen, ("spent",)) is None
    assert kept(object(), ("amount",)) is None


@pytest.mark.parametrize(
    ("build", "column", "step"),
    [
        (lambda t: t.with_columns(share=col("spent") / col("amount")), "share", "share="),
        (lambda t: t.with_columns(spent=col("spent") / 60), "spent", "spent="),
        (lambda t: t.rename(outlay="spent"), "outlay", "outlay='spent'"),
        (lambda t: t.rename(buys="spent", spent="buys"), "spent", "spent='buys'"),
        (
            lambda t: t.with_columns(a=col("spent")).with_columns(b=col("a")).rename(c="b"),
            "c",
            r"rename\(c='b'\)",
        ),
        (
            lambda t: t.with_windows(twice=Window("spent", by="card", stat="max", over="1d")),
            "twice",
            r"with_windows\(twice=…\)",
        ),
    ],
)
def test_a_feature_made_of_a_window_is_an_error_that_names_the_step(events, build, column, step):
    table = build(events.with_windows(spent=SPENT, buys=BUYS))
    with pytest.raises(ValueError, match=f"feature column '{column}'.*{step}.*server could not"):
        kept(table, (column, "amount"))
    assert kept(table, ("amount",)) is None


def test_a_key_that_a_feature_reads_must_be_the_key_that_the_window_read(events):
    table = events.with_windows(spent=SPENT).with_columns(card=col("card").lower())
    with pytest.raises(ValueError, match=r"'card'.*with_columns\(card=.*a request has it once"):
        kept(table, ("spent", "card"))
    found = kept(table, ("spent", "amount"))
    assert found is not None
    assert found.windows.asked == ("at", "card")
    back = events.with_windows(spent=SPENT).drop("card").with_columns(card=col("shop"))
    with pytest.raises(ValueError, match=r"'card'.*a request has it once"):
        kept(back, ("spent", "card"))


def test_what_a_window_reads_has_a_name_that_a_request_can_bring(events):
    table = events.rename(**{'the "card"': "card"})
    spent = Window("amount", by='the "card"', stat="sum", over="1h")
    with pytest.raises(ValueError, match="the server is to be sent: found 'the \"card\"'"):
        kept(table.with_windows(spent=spent), ("spent",))
    assert kept(table.with_windows(spent=spent), ("amount",)) is None


def test_a_server_keeps_the_windows_of_one_step(events):
    table = events.with_windows(spent=SPENT).with_windows(buys=BUYS, lateness="1m")
    with pytest.raises(ValueError, match="allowed: windows of one with_windows"):
        kept(table, ("spent", "buys"))
    found = kept(table, ("buys",))
    assert found is not None
    assert found.windows.lateness == 60_000_000
