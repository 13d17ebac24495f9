"""Where rows come from and land: files, tables, cleaning, joins and splits."""

from drivetrain.events.expression import (
    Expression,
    coalesce,
    col,
    concat,
    days,
    hours,
    lit,
    make_timestamp,
    minutes,
    seconds,
    when,
)
from drivetrain.events.files import CSV, Arrow, JSONLines, Parquet
from drivetrain.events.prepared import Prepared, fingerprint, prepare
from drivetrain.events.split import ColumnSplit, HashSplit, TimeSplit
from drivetrain.events.table import Table

__all__ = [
    "CSV",
    "Arrow",
    "ColumnSplit",
    "Expression",
    "HashSplit",
    "JSONLines",
    "Parquet",
    "Prepared",
    "Table",
    "TimeSplit",
    "coalesce",
    "col",
    "concat",
    "days",
    "fingerprint",
    "hours",
    "lit",
    "make_timestamp",
    "minutes",
    "prepare",
    "seconds",
    "when",
]
