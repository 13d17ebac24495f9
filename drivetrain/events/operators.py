"""The operators of expressions: what each takes, gives, and how each engine writes it.

An engine that comes later is one more name in ``sql.DIALECTS`` and one more key in the entries of
:data:`OPERATORS`; an operator that it lacks is an error that names both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import Dtype, Schema
from drivetrain.events.expression import Call, Column, Duration, Expression, Literal
from drivetrain.events.sql import (
    NUMBERS,
    SQL_TYPE,
    Dialect,
    Kind,
    MismatchError,
    Term,
    common_kind,
    condition,
    constant,
    floating,
    moment,
    number,
    quote,
    string,
    text,
    timestamp,
    unify,
)

Render = Callable[[Sequence[Term], Sequence[str]], Term]


@dataclass(frozen=True)
class Operator:
    """One operator: its rendering in each dialect, which checks the kinds of its arguments."""

    render: Mapping[Dialect, Render]


# -- renderings ------------------------------------------------------------------------------------


def _finite(sql: str) -> Term:
    """A float64 whose NaN, if the operation made one, is null."""
    return Term(f"NULLIF({sql}, CAST('NaN' AS DOUBLE))", "float64")


def _shift(terms: Sequence[Term], sign: str) -> Term | None:
    a, b = terms
    if sign == "+" and (a.kind, b.kind) == ("duration", "timestamp"):
        a, b = b, a
    if a.kind == "timestamp" and b.kind == "duration":
        return Term(f"({a.sql} {sign} {b.sql})", "timestamp")
    if sign == "-" and "timestamp" in (a.kind, b.kind):
        a, b = (timestamp(term) for term in (moment(a), moment(b)))
        return Term(f"(epoch_us({a.sql}) - epoch_us({b.sql}))", "int64")
    return None


def _times(terms: Sequence[Term], sign: str) -> Term | None:
    """A length of time as often as an integer says."""
    kinds = [term.kind for term in terms]
    if sign != "*" or "duration" not in kinds:
        return None
    if sorted(kinds) != ["duration", "int64"]:
        raise MismatchError("a length of time and an integer")
    return Term(f"({terms[0].sql} * {terms[1].sql})", "duration")


def _arithmetic(sign: str) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str]) -> Term:
        if timed := _shift(terms, sign) or _times(terms, sign):
            return timed
        if "string" in (terms[0].kind, terms[1].kind):
            raise MismatchError("numbers; concat(a, b) joins text")
        a, b = (number(term) for term in terms)
        if "float64" in (a.kind, b.kind):
            return _finite(f"({floating(a).sql} {sign} {floating(b).sql})")
        return Term(f"({a.sql} {sign} {b.sql})", "int64")

    return render


def _divide(terms: Sequence[Term], options: Sequence[str]) -> Term:
    a, b = (floating(term) for term in terms)
    return _finite(f"({a.sql} / NULLIF({b.sql}, 0))")


def _floor_divide(terms: Sequence[Term], options: Sequence[str]) -> Term:
    a, b = (number(term) for term in terms)
    if "float64" in (a.kind, b.kind):
        return _finite(f"floor({floating(a).sql} / NULLIF({floating(b).sql}, 0))")
    divisor = f"NULLIF({b.sql}, 0)"
    inexact = f"{a.sql} % {divisor} <> 0 AND ({a.sql} < 0) <> ({b.sql} < 0)"
    return Term(f"({a.sql} // {divisor} - CASE WHEN {inexact} THEN 1 ELSE 0 END)", "int64")


def _modulo(terms: Sequence[Term], options: Sequence[str]) -> Term:
    a, b = (number(term) for term in terms)
    if "float64" not in (a.kind, b.kind):
        divisor = f"NULLIF({b.sql}, 0)"
        return Term(f"((({a.sql} % {divisor}) + {divisor}) % {divisor})", "int64")
    a, b = floating(a), floating(b)
    rest = f"({a.sql} % NULLIF({b.sql}, 0))"
    other_sign = f"{rest} <> 0 AND ({rest} < 0) <> ({b.sql} < 0)"
    return _finite(f"({rest} + CASE WHEN {other_sign} THEN {b.sql} ELSE 0 END)")


def _numeric(pattern: str, integer: str | None = None) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str]) -> Term:
        a = number(terms[0])
        form = pattern if a.kind == "float64" or integer is None else integer
        return Term(form.format(a.sql), a.kind)

    return render


def _clip(sign: str) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str]) -> Term:
        a, bound = unify([number(term) if term.kind in NUMBERS else term for term in terms])
        if a.kind not in ("int64", "float64", "timestamp"):
            raise MismatchError("numbers or timestamps")
        sql = f"(CASE WHEN {a.sql} {sign} {bound.sql} THEN {bound.sql} ELSE {a.sql} END)"
        return Term(sql, a.kind)

    return render


def _compare(sign: str) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str]) -> Term:
        a, b = unify(terms)
        if "duration" in (a.kind, b.kind):
            raise MismatchError("values of one type; shift one of two timestamps and compare them")
        return Term(f"({a.sql} {sign} {b.sql})", "bool")

    return render


def _logic(word: str) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str]) -> Term:
        a, b = (condition(term) for term in terms)
        return Term(f"({a.sql} {word} {b.sql})", "bool")

    return render


def _not(terms: Sequence[Term], options: Sequence[str]) -> Term:
    return Term(f"(NOT {condition(terms[0]).sql})", "bool")


def _isin(terms: Sequence[Term], options: Sequence[str]) -> Term:
    head, *values = unify(terms)
    if not values:
        return Term(f"(CASE WHEN {head.sql} IS NULL THEN NULL ELSE FALSE END)", "bool")
    return Term(f"({head.sql} IN ({', '.join(value.sql for value in values)}))", "bool")


def _null(word: str) -> Render:
    return lambda terms, options: Term(f"({terms[0].sql} {word})", "bool")


def _is_finite(terms: Sequence[Term], options: Sequence[str]) -> Term:
    return Term(f"coalesce(isfinite({floating(terms[0]).sql}), FALSE)", "bool")


def _coalesce(terms: Sequence[Term], options: Sequence[str]) -> Term:
    same = unify(terms)
    return Term(f"coalesce({', '.join(term.sql for term in same)})", common_kind(same))


def _case(terms: Sequence[Term], options: Sequence[str]) -> Term:
    conditions = [condition(term) for term in terms[:-1:2]]
    values = unify([*terms[1:-1:2], terms[-1]])
    branches = " ".join(
        f"WHEN {condition.sql} THEN {value.sql}"
        for condition, value in zip(conditions, values[:-1], strict=True)
    )
    return Term(f"(CASE {branches} ELSE {values[-1].sql} END)", common_kind(values))


def _concat(terms: Sequence[Term], options: Sequence[str]) -> Term:
    return Term(f"({' || '.join(string(term).sql for term in terms)})", "string")


def _string_to(result: Kind, pattern: str) -> Render:
    return lambda terms, options: Term(pattern.format(string(terms[0]).sql), result)


def _part(pattern: str) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str]) -> Term:
        return Term(f"CAST({pattern.format(timestamp(terms[0]).sql)} AS BIGINT)", "int64")

    return render


def _truncate(terms: Sequence[Term], options: Sequence[str]) -> Term:
    inner = f"date_trunc({text(options[0])}, {timestamp(terms[0]).sql})"
    return Term(f"CAST({inner} AS TIMESTAMP)", "timestamp")


def _make_timestamp(terms: Sequence[Term], options: Sequence[str]) -> Term:
    parts = [number(term) for term in terms]
    if any(part.kind != "int64" for part in parts):
        raise MismatchError("whole numbers")
    return Term(f"make_timestamp({', '.join(p.sql for p in parts)}, 0.0)", "timestamp")


def _cast(function: str) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str]) -> Term:
        (term,), (to,) = terms, options
        if term.kind in ("duration", "bytes"):
            raise MismatchError("numbers, text and timestamps")
        if to == "timestamp" and term.kind == "int64":
            return Term(f"make_timestamp({term.sql})", to)
        if term.kind == "timestamp" and to in ("int64", "float64"):
            raise MismatchError("numbers and text; epoch_us() makes a number of a timestamp")
        if to == "timestamp" and term.kind not in ("string", "timestamp", "null"):
            raise MismatchError("text, or integers as microseconds")
        source = term.sql
        if term.kind == "bool":
            source = f"CAST({source} AS BIGINT)"
        elif to == "int64" and term.kind in ("float32", "float64"):
            source = f"trunc({source})"
        sql = f"{function}({source} AS {SQL_TYPE['duckdb'][to]})"
        return _finite(sql) if to == "float64" and term.kind == "string" else Term(sql, to)

    return render


def _canonical(term: Term) -> str:
    """The text of a value that a hash reads: the same in every engine, for it is all integers.

    A float is its whole part (within ±4e18) and its fraction in units of 2**-32, both exact in
    IEEE arithmetic; missing and infinite values are ``n``, and a missing string is ``""``.
    """
    value = term.sql
    if term.kind == "string":
        value = f"coalesce({value}, '')"
        return f"(CAST(length({value}) AS VARCHAR) || ':' || {value})"
    if term.kind in ("float32", "float64"):
        value = f"CAST({value} AS DOUBLE)"
        bounded = f"greatest(least({value}, 4e18), -4e18)"
        whole = f"CAST(CAST(floor({bounded}) AS BIGINT) AS VARCHAR)"
        part = f"CAST(CAST(floor(({value} - floor({value})) * 4294967296e0) AS BIGINT) AS VARCHAR)"
        return f"(CASE WHEN isfinite({value}) THEN {whole} || '.' || {part} ELSE 'n' END)"
    numbers = {"timestamp": "epoch_us({})", "bool": "CAST({} AS BIGINT)", "bytes": "lower(hex({}))"}
    return f"coalesce(CAST({numbers.get(term.kind, '{}').format(value)} AS VARCHAR), 'n')"


def _hash(terms: Sequence[Term], options: Sequence[str]) -> Term:
    joined = " || ',' || ".join([text(options[0]), *map(_canonical, terms)])
    return Term(f"substr(md5({joined}), 1, 13)", "string")


def _duckdb(render: Render) -> Operator:
    return Operator({"duckdb": render})


OPERATORS: Mapping[str, Operator] = {
    "add": _duckdb(_arithmetic("+")),
    "subtract": _duckdb(_arithmetic("-")),
    "multiply": _duckdb(_arithmetic("*")),
    "divide": _duckdb(_divide),
    "floor_divide": _duckdb(_floor_divide),
    "modulo": _duckdb(_modulo),
    "negate": _duckdb(_numeric("(- {})")),
    "abs": _duckdb(_numeric("abs({})")),
    "round": _duckdb(_numeric("round({})", "{}")),
    "clip_low": _duckdb(_clip("<")),
    "clip_high": _duckdb(_clip(">")),
    "equal": _duckdb(_compare("=")),
    "not_equal": _duckdb(_compare("<>")),
    "less": _duckdb(_compare("<")),
    "less_equal": _duckdb(_compare("<=")),
    "greater": _duckdb(_compare(">")),
    "greater_equal": _duckdb(_compare(">=")),
    "and": _duckdb(_logic("AND")),
    "or": _duckdb(_logic("OR")),
    "not": _duckdb(_not),
    "isin": _duckdb(_isin),
    "is_null": _duckdb(_null("IS NULL")),
    "is_not_null": _duckdb(_null("IS NOT NULL")),
    "is_finite": _duckdb(_is_finite),
    "coalesce": _duckdb(_coalesce),
    "case": _duckdb(_case),
    "concat": _duckdb(_concat),
    "lower": _duckdb(_string_to("string", "lower({})")),
    "upper": _duckdb(_string_to("string", "upper({})")),
    "trim": _duckdb(_string_to("string", "trim({})")),
    "length": _duckdb(_string_to("int64", "CAST(length({}) AS BIGINT)")),
    "truncate": _duckdb(_truncate),
    "year": _duckdb(_part("year({})")),
    "month": _duckdb(_part("month({})")),
    "day": _duckdb(_part("day({})")),
    "hour": _duckdb(_part("hour({})")),
    "minute": _duckdb(_part("minute({})")),
    "weekday": _duckdb(_part("isodow({}) - 1")),
    "day_of_year": _duckdb(_part("dayofyear({})")),
    "epoch_us": _duckdb(_part("epoch_us({})")),
    "make_timestamp": _duckdb(_make_timestamp),
    "cast": _duckdb(_cast("CAST")),
    "try_cast": _duckdb(_cast("TRY_CAST")),
    "hash": _duckdb(_hash),
}


# -- whole expressions -----------------------------------------------------------------------------


def columns_of(expression: Expression) -> frozenset[str]:
    """The columns that an expression reads."""
    if isinstance(expression, Column):
        return frozenset((expression.name,))
    if isinstance(expression, Call):
        return frozenset().union(*(columns_of(argument) for argument in expression.arguments))
    return frozenset()


def render(expression: Expression, schema: Schema, where: str, dialect: Dialect) -> Term:
    """SQL for an expression over the columns of ``schema``, and its kind.

    Args:
        expression: what is computed.
        schema: the columns that there are.
        where: where the expression stands, for errors.
        dialect: whose SQL.

    Raises:
        ValueError: a column that is not there (suggests the nearest), or a type that an operator
            does not take.
    """
    if isinstance(expression, Column):
        field = schema.field(expression.name, where)
        if field.shape:
            found = f"{field.dtype} of shape {field.shape}"
            raise wrong(f"column {field.name!r} in {where}", found, "columns of single values")
        return Term(quote(field.name), field.dtype)
    if isinstance(expression, Literal):
        return constant(expression.value)
    if isinstance(expression, Duration):
        sql = f"to_microseconds(CAST({expression.microseconds} AS BIGINT))"
        return Term(sql, "duration")
    assert isinstance(expression, Call)
    terms = [render(argument, schema, where, dialect) for argument in expression.arguments]
    operator = OPERATORS[expression.operator].render.get(dialect)
    if operator is None:
        raise unknown("dialect", dialect, OPERATORS[expression.operator].render, where)
    try:
        return operator(terms, expression.options)
    except MismatchError as mismatch:
        kinds = ", ".join(term.kind for term in terms)
        raise ValueError(
            f"{expression!r} in {where}: found {kinds}, allowed: {mismatch}."
        ) from None


def predicate(expression: Expression, schema: Schema, where: str, dialect: Dialect) -> str:
    """SQL that is true, false or null.

    Raises:
        ValueError: as :func:`render`, or the expression is no condition.
    """
    term = render(expression, schema, where, dialect)
    try:
        return condition(term).sql
    except MismatchError as mismatch:
        raise ValueError(f"{where}: found {term.kind}, allowed: {mismatch}.") from None


def column(
    expression: Expression, schema: Schema, where: str, dialect: Dialect
) -> tuple[str, Dtype]:
    """SQL of a column's values and the dtype that the column has; a condition is 0 or 1.

    Raises:
        ValueError: as :func:`render`, or no column can hold the values.
    """
    term = render(expression, schema, where, dialect)
    dtype: Dtype
    if term.kind == "duration":
        raise wrong(where, "a length of time", "a value; add it to a timestamp")
    if term.kind == "null":
        raise wrong(where, None, "a value with a type; lit(None).cast(…) gives a null one")
    if term.kind == "bool":
        term, dtype = Term(f"CAST({term.sql} AS BIGINT)", "int64"), "int64"
    else:
        dtype = term.kind  # pyright: ignore[reportAssignmentType]
    return term.sql, dtype
