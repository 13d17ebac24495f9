"""SQL terms with their kinds: names and constants quoted, and what arguments may be."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal as Choice
from typing import get_args

from drivetrain.events.expression import lit

Dialect = Choice["duckdb", "spark"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
Kind = str
"""A dtype of a column, ``bool`` within expressions, ``null`` or ``duration``."""


@dataclass(frozen=True)
class Term:
    """A rendered expression and its kind; ``literal`` is its text where it is a constant string."""

    sql: str
    kind: Kind
    literal: str | None = None


class MismatchError(Exception):
    """Arguments that an operator cannot take; says what it allows."""


_SPECIAL = {"\\": "/", ".": ":", "`": "'", "*": "+"}
"""What Spark takes for something else: a backslash even between double quotes, the others where a
frame is asked for a column."""


def identifier(name: str) -> str:
    """A column's name within SQL, where ``"A"`` and ``"a"`` would be one: capitals get a caret.

    So do characters that mean something to Spark, for which others then stand, and no name at all,
    as pandas writes above its index, is a caret alone.
    """

    def marked(found: re.Match[str]) -> str:
        return "^" + _SPECIAL.get(found.group(), found.group().lower())

    return re.sub(r"[A-Z^\\.`*]", marked, name) or "^"


def quote(name: str) -> str:
    """A column's name as a quoted SQL identifier."""
    return '"' + identifier(name).replace('"', '""') + '"'


def text(value: str, dialect: Dialect = "duckdb") -> str:
    """A string as an SQL literal; only backslashes are written apart."""
    if dialect == "spark":
        value = value.replace("\\", "\\\\")
    return "'" + value.replace("'", "''") + "'"


def constant(value: object, dialect: Dialect = "duckdb") -> Term:
    """A plain value as SQL of exactly its type; only text and bytes are written apart."""
    if value is None or (isinstance(value, float) and value != value):
        return Term("NULL", "null")
    if isinstance(value, bool):
        return Term("TRUE" if value else "FALSE", "bool")
    if isinstance(value, int):
        return Term(f"CAST({text(str(value))} AS BIGINT)", "int64")
    if isinstance(value, float):
        return Term(f"CAST({text(repr(value))} AS DOUBLE)", "float64")
    if isinstance(value, str):
        return Term(text(value, dialect), "string", value)
    if isinstance(value, bytes) and dialect == "spark":
        return Term(f"X'{value.hex()}'", "bytes")
    if isinstance(value, bytes):
        escaped = "".join(f"\\x{byte:02X}" for byte in value)
        return Term(f"CAST({text(escaped)} AS BLOB)", "bytes")
    assert isinstance(value, datetime)
    return Term(f"CAST({text(value.isoformat(sep=' '))} AS TIMESTAMP)", "timestamp")


# -- what arguments may be -------------------------------------------------------------------------

NUMBERS = ("int64", "float32", "float64", "bool", "null")


def number(term: Term) -> Term:
    """The term as an int64 or a float64."""
    if term.kind not in NUMBERS:
        raise MismatchError("numbers")
    if term.kind == "bool":
        return Term(f"CAST({term.sql} AS BIGINT)", "int64")
    if term.kind == "null":
        return Term("CAST(NULL AS BIGINT)", "int64")
    return Term(f"CAST({term.sql} AS DOUBLE)", "float64") if term.kind == "float32" else term


def floating(term: Term) -> Term:
    """The term as a float64."""
    term = number(term)
    return term if term.kind == "float64" else Term(f"CAST({term.sql} AS DOUBLE)", "float64")


def condition(term: Term) -> Term:
    """The term as true, false or null."""
    if term.kind == "null":
        return Term("CAST(NULL AS BOOLEAN)", "bool")
    if term.kind == "int64":
        return Term(f"({term.sql} <> 0)", "bool")
    if term.kind != "bool":
        raise MismatchError("conditions, such as a comparison or an integer column of 0 and 1")
    return term


def kind_of(kind: Kind, name: str, allowed: str) -> Callable[[Term], Term]:
    """A check that a term is of one kind; a constant null becomes one of it."""

    def check(term: Term) -> Term:
        if term.kind == "null":
            return Term(f"CAST(NULL AS {name})", kind)
        if term.kind != kind:
            raise MismatchError(allowed)
        return term

    return check


string = kind_of("string", "STRING", "text; cast('string') makes it")
timestamp = kind_of("timestamp", "TIMESTAMP", "timestamps; cast('timestamp') makes them")


def moment(term: Term) -> Term:
    """A constant string as the timestamp that it spells."""
    if term.literal is None:
        return term
    try:
        value = datetime.fromisoformat(term.literal)
    except ValueError:
        raise MismatchError("ISO 8601 beside a timestamp, such as '2013-10-01 06:30'") from None
    return constant(lit(value).value)


def unify(terms: Sequence[Term]) -> list[Term]:
    """Terms of one kind: integers beside floats become floats, strings beside times times."""
    kinds = {term.kind for term in terms} - {"null"}
    if "timestamp" in kinds:
        terms = [moment(term) for term in terms]
        kinds = {term.kind for term in terms} - {"null"}
    if len(kinds) > 1:
        if not kinds <= set(NUMBERS):
            raise MismatchError("values of one type")
        convert = floating if kinds & {"float32", "float64"} else number
        return [convert(term) for term in terms]
    return list(terms)


def common_kind(terms: Sequence[Term]) -> Kind:
    """The kind that terms of one kind have, constant nulls apart."""
    return next((term.kind for term in terms if term.kind != "null"), "null")
