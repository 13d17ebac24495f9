"""The operators of expressions: what each takes and gives, and its SQL.

An engine that comes later is one more name in ``sql.DIALECTS`` and one more entry of
``forms.FORMS``, which has what engines write apart.
"""

from collections.abc import Callable, Mapping, Sequence

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import Dtype, Schema
from drivetrain.events.dialect.forms import FORMS, Forms
from drivetrain.events.dialect.sql import (
    NUMBERS,
    Dialect,
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
from drivetrain.events.expression import Call, Column, Duration, Expression, Literal

Render = Callable[[Sequence[Term], Sequence[str], Forms], Term]
"""An operator's rendering, which checks the kinds of its arguments."""


# -- renderings ------------------------------------------------------------------------------------


def _finite(sql: str, forms: Forms) -> Term:
    """A float64 whose NaN, if the operation made one, is null."""
    return Term(forms.finite.format(sql), "float64")


def _shift(terms: Sequence[Term], sign: str, forms: Forms) -> Term | None:
    a, b = terms
    if sign == "+" and (a.kind, b.kind) == ("duration", "timestamp"):
        a, b = b, a
    if a.kind == "timestamp" and b.kind == "duration":
        return Term(forms.shift.format(a=a.sql, sign=sign, b=b.sql), "timestamp")
    if sign == "-" and "timestamp" in (a.kind, b.kind):
        sides = (forms.epoch_us.format(timestamp(moment(term)).sql) for term in (a, b))
        return Term(f"({' - '.join(sides)})", "int64")
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
    def render(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
        if timed := _shift(terms, sign, forms) or _times(terms, sign):
            return timed
        if "string" in (terms[0].kind, terms[1].kind):
            raise MismatchError("numbers; concat(a, b) joins text")
        a, b = (number(term) for term in terms)
        if "float64" in (a.kind, b.kind):
            return _finite(f"({floating(a).sql} {sign} {floating(b).sql})", forms)
        return Term(f"({a.sql} {sign} {b.sql})", "int64")

    return render


def _divide(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    a, b = (floating(term) for term in terms)
    return _finite(forms.divide.format(a.sql, b.sql), forms)


def _floor_divide(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    a, b = (number(term) for term in terms)
    if "float64" in (a.kind, b.kind):
        ratio = forms.divide.format(floating(a).sql, floating(b).sql)
        return _finite(forms.floor.format(ratio), forms)
    divisor = f"NULLIF({b.sql}, 0)"
    inexact = f"{a.sql} % {divisor} <> 0 AND ({a.sql} < 0) <> ({b.sql} < 0)"
    quotient = forms.whole_divide.format(a.sql, divisor)
    return Term(f"({quotient} - CASE WHEN {inexact} THEN 1 ELSE 0 END)", "int64")


def _modulo(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    a, b = (number(term) for term in terms)
    if "float64" not in (a.kind, b.kind):
        divisor = f"NULLIF({b.sql}, 0)"
        rest = f"((({a.sql} % {divisor}) + {divisor}) % {divisor})"
        # The least integer divided by -1 is none, but leaves nothing.
        return Term(f"(CASE WHEN {b.sql} = -1 THEN {a.sql} - {a.sql} ELSE {rest} END)", "int64")
    a, b = floating(a), floating(b)
    rest = f"({a.sql} % NULLIF({b.sql}, 0))"
    other_sign = f"{rest} <> 0 AND ({rest} < 0) <> ({b.sql} < 0)"
    return _finite(f"({rest} + CASE WHEN {other_sign} THEN {b.sql} ELSE 0 END)", forms)


def _numeric(pattern: str) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
        a = number(terms[0])
        return Term(pattern.format(a.sql), a.kind)

    return render


def _round(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    a = number(terms[0])
    return Term(forms.round.format(a.sql), a.kind) if a.kind == "float64" else a


def _clip(sign: str) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
        a, bound = unify([number(term) if term.kind in NUMBERS else term for term in terms])
        if a.kind not in ("int64", "float64", "timestamp"):
            raise MismatchError("numbers or timestamps")
        sql = f"(CASE WHEN {a.sql} {sign} {bound.sql} THEN {bound.sql} ELSE {a.sql} END)"
        return Term(sql, a.kind)

    return render


def _compare(sign: str) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
        a, b = unify(terms)
        if "duration" in (a.kind, b.kind):
            raise MismatchError("values of one type; shift one of two timestamps and compare them")
        return Term(f"({a.sql} {sign} {b.sql})", "bool")

    return render


def _logic(word: str) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
        a, b = (condition(term) for term in terms)
        return Term(f"({a.sql} {word} {b.sql})", "bool")

    return render


def _not(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    return Term(f"(NOT {condition(terms[0]).sql})", "bool")


def _isin(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    head, *values = unify(terms)
    if not values:
        return Term(f"(CASE WHEN {head.sql} IS NULL THEN NULL ELSE FALSE END)", "bool")
    return Term(f"({head.sql} IN ({', '.join(value.sql for value in values)}))", "bool")


def _null(word: str) -> Render:
    return lambda terms, options, forms: Term(f"({terms[0].sql} {word})", "bool")


def _is_finite(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    finite = forms.is_finite.format(floating(terms[0]).sql)
    return Term(f"coalesce({finite}, FALSE)", "bool")


def _coalesce(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    same = unify(terms)
    return Term(f"coalesce({', '.join(term.sql for term in same)})", common_kind(same))


def _case(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    conditions = [condition(term) for term in terms[:-1:2]]
    values = unify([*terms[1:-1:2], terms[-1]])
    branches = " ".join(
        f"WHEN {condition.sql} THEN {value.sql}"
        for condition, value in zip(conditions, values[:-1], strict=True)
    )
    return Term(f"(CASE {branches} ELSE {values[-1].sql} END)", common_kind(values))


def _concat(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    return Term(f"({' || '.join(string(term).sql for term in terms)})", "string")


def _text(form: Callable[[Forms], Callable[[str], str]]) -> Render:
    return lambda terms, options, forms: Term(form(forms)(string(terms[0]).sql), "string")


def _length(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    return Term(f"CAST(length({string(terms[0]).sql}) AS BIGINT)", "int64")


def _part(form: Callable[[Forms], str]) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
        part = form(forms).format(timestamp(terms[0]).sql)
        return Term(f"CAST({part} AS BIGINT)", "int64")

    return render


def _truncate(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    inner = f"date_trunc({text(options[0])}, {timestamp(terms[0]).sql})"
    return Term(f"CAST({inner} AS TIMESTAMP)", "timestamp")


def _make_timestamp(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    parts = [number(term) for term in terms]
    if any(part.kind != "int64" for part in parts):
        raise MismatchError("whole numbers")
    return Term(forms.make_timestamp.format(*(part.sql for part in parts)), "timestamp")


def _cast(word: str) -> Render:
    def render(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
        (term,), (to,) = terms, options
        if term.kind in ("duration", "bytes"):
            raise MismatchError("numbers, text and timestamps")
        if to == "timestamp" and term.kind == "int64":
            return Term(forms.from_us.format(term.sql), to)
        if term.kind == "timestamp" and to in ("int64", "float64"):
            raise MismatchError("numbers and text; epoch_us() makes a number of a timestamp")
        if to == "timestamp" and term.kind not in ("string", "timestamp", "null"):
            raise MismatchError("text, or integers as microseconds")
        source = f"CAST({term.sql} AS BIGINT)" if term.kind == "bool" else term.sql
        form = forms.casts.get((term.kind, to), f"{{cast}}({{}} AS {forms.types[to]})")
        sql = form.format(source, cast=word)
        return _finite(sql, forms) if to == "float64" and term.kind == "string" else Term(sql, to)

    return render


def _canonical(term: Term, forms: Forms) -> str:
    """The text of a value that a hash reads: the same in every engine, for it is all integers.

    A float is its whole part (within ±4e18) and its fraction in units of 2**-32, both exact in
    IEEE arithmetic; missing and infinite values are ``n``, and a missing string is ``""``.
    """
    value, text_type = term.sql, forms.types["string"]
    if term.kind == "string":
        value = f"coalesce({value}, '')"
        return f"(CAST(length({value}) AS {text_type}) || ':' || {value})"
    if term.kind in ("float32", "float64"):
        value = f"CAST({value} AS DOUBLE)"
        bounded = f"greatest(least({value}, 4e18), -4e18)"
        whole = f"CAST(CAST(floor({bounded}) AS BIGINT) AS {text_type})"
        rest = f"({value} - {forms.floor.format(value)})"
        part = f"CAST(CAST(floor({rest} * 4294967296e0) AS BIGINT) AS {text_type})"
        finite = forms.is_finite.format(value)
        return f"(CASE WHEN {finite} THEN {whole} || '.' || {part} ELSE 'n' END)"
    numbers = {
        "timestamp": forms.epoch_us,
        "bool": "CAST({} AS BIGINT)",
        "bytes": "lower(hex({}))",
    }
    return f"coalesce(CAST({numbers.get(term.kind, '{}').format(value)} AS {text_type}), 'n')"


def _hash(terms: Sequence[Term], options: Sequence[str], forms: Forms) -> Term:
    parts = (_canonical(term, forms) for term in terms)
    joined = " || ',' || ".join([text(options[0]), *parts])
    return Term(f"substr(md5({joined}), 1, 13)", "string")


OPERATORS: Mapping[str, Render] = {
    "add": _arithmetic("+"),
    "subtract": _arithmetic("-"),
    "multiply": _arithmetic("*"),
    "divide": _divide,
    "floor_divide": _floor_divide,
    "modulo": _modulo,
    "negate": _numeric("(- {})"),
    "abs": _numeric("abs({})"),
    "round": _round,
    "clip_low": _clip("<"),
    "clip_high": _clip(">"),
    "equal": _compare("="),
    "not_equal": _compare("<>"),
    "less": _compare("<"),
    "less_equal": _compare("<="),
    "greater": _compare(">"),
    "greater_equal": _compare(">="),
    "and": _logic("AND"),
    "or": _logic("OR"),
    "not": _not,
    "isin": _isin,
    "is_null": _null("IS NULL"),
    "is_not_null": _null("IS NOT NULL"),
    "is_finite": _is_finite,
    "coalesce": _coalesce,
    "case": _case,
    "concat": _concat,
    "lower": _text(lambda forms: forms.lower),
    "upper": _text(lambda forms: forms.upper),
    "trim": _text(lambda forms: forms.trim.format),
    "length": _length,
    "truncate": _truncate,
    "year": _part(lambda forms: "year({})"),
    "month": _part(lambda forms: "month({})"),
    "day": _part(lambda forms: "day({})"),
    "hour": _part(lambda forms: "hour({})"),
    "minute": _part(lambda forms: "minute({})"),
    "weekday": _part(lambda forms: forms.weekday),
    "day_of_year": _part(lambda forms: "dayofyear({})"),
    "epoch_us": _part(lambda forms: forms.epoch_us),
    "make_timestamp": _make_timestamp,
    "cast": _cast("CAST"),
    "try_cast": _cast("TRY_CAST"),
    "hash": _hash,
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
    forms = FORMS.get(dialect)
    if forms is None:
        raise unknown("dialect", dialect, FORMS, where)
    if isinstance(expression, Literal):
        return constant(expression.value, dialect)
    if isinstance(expression, Duration):
        return Term(f"CAST({expression.microseconds} AS BIGINT)", "duration")
    assert isinstance(expression, Call)
    terms = [render(argument, schema, where, dialect) for argument in expression.arguments]
    try:
        return OPERATORS[expression.operator](terms, expression.options, forms)
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
