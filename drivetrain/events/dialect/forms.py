"""How each engine writes what engines write apart: templates of SQL, and nothing of the meaning.

Templates have a place ``{}`` for each argument, or named ones. What both engines write alike stands
in :mod:`drivetrain.events.dialect.operators`. Spark is asked in ANSI mode with ``"`` around names
and times without a zone (``core.spark.MEANING``); text that its own casts read otherwise than
DuckDB's is given to functions of ``events.spark.functions``, which ask DuckDB.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from drivetrain.core.need import need
from drivetrain.events.dialect.sql import Dialect, Kind


@dataclass(frozen=True, kw_only=True)
class Forms:
    """What one engine writes in its own way.

    Attributes:
        types: the name of each kind's type.
        finite: a float64, null where it is NaN.
        is_finite: whether a float64 is no infinity.
        divide: a float64 by another, null by zero.
        whole_divide: an integer by another that is not zero, the fraction dropped.
        floor: a float64 rounded down, the sign of a zero kept.
        round: a float64 to the nearest, halves away from zero, the sign of a zero kept.
        shift: the time ``a`` moved by ``b`` microseconds.
        epoch_us: a time as microseconds since 1970, and ``from_us`` the other way.
        make_timestamp: a time from year, month, day, hour and minute.
        weekday: of a time, Monday 0.
        trim: text without the spaces of Unicode around it.
        lower: text in lower case, code point by code point; ``upper`` likewise.
        casts: of a kind to another, where it is not ``CAST({} AS type)``; ``{cast}`` is the word.
    """

    types: Mapping[Kind, str]
    finite: str
    is_finite: str
    divide: str
    whole_divide: str
    floor: str
    round: str
    shift: str
    epoch_us: str
    from_us: str
    make_timestamp: str
    weekday: str
    trim: str
    lower: Callable[[str], str]
    upper: Callable[[str], str]
    casts: Mapping[tuple[Kind, Kind], str]


_DUCKDB = Forms(
    types={
        "string": "VARCHAR",
        "bytes": "BLOB",
        "int64": "BIGINT",
        "float32": "FLOAT",
        "float64": "DOUBLE",
        "timestamp": "TIMESTAMP",
        "bool": "BOOLEAN",
    },
    finite="NULLIF({}, CAST('NaN' AS DOUBLE))",
    is_finite="isfinite({})",
    divide="({} / NULLIF({}, 0))",
    whole_divide="({} // {})",
    floor="floor({})",
    round="round({})",
    shift="({a} {sign} to_microseconds({b}))",
    epoch_us="epoch_us({})",
    from_us="make_timestamp({})",
    make_timestamp="make_timestamp({}, {}, {}, {}, {}, 0.0)",
    weekday="isodow({}) - 1",
    trim="trim({})",
    lower="lower({})".format,
    upper="upper({})".format,
    casts={
        ("float32", "int64"): "{cast}(trunc({}) AS BIGINT)",
        ("float64", "int64"): "{cast}(trunc({}) AS BIGINT)",
    },
)

# -- Spark -----------------------------------------------------------------------------------------

# Spark's own floor() gives an integer, and its round() forgets the sign of a zero.
_FLOOR = "(rint({0}) - CASE WHEN rint({0}) > {0} THEN 1.0D ELSE 0.0D END)"
_ROUND = "(CASE WHEN {0} < 0 THEN - round(- {0}) WHEN {0} = 0 THEN {0} ELSE round({0}) END)"
# Its functions of times want one with a zone, which is the session's, UTC.
_EPOCH = "unix_micros(CAST({} AS TIMESTAMP_LTZ))"
_FROM = "CAST(timestamp_micros({}) AS TIMESTAMP)"
_ZERO = "CAST(0 AS DECIMAL(16, 6))"
_DATE = "CAST({0} AS INT), CAST({1} AS INT), CAST({2} AS INT)"
_MADE = f"make_timestamp_ntz({_DATE}, CAST({{3}} AS INT), CAST({{4}} AS INT), {_ZERO})"
_AFTER = f"make_timestamp_ntz({_DATE}, 0, 0, {_ZERO}) + INTERVAL 1 DAY"  # 24:00, to DuckDB
_SPACES = "".join(
    map(chr, (0x20, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000))
)  # the category Zs
_WHOLE = "'^-?[0-9]{{1,18}}$'"
_DECIMAL = "'^-?[0-9]{{1,15}}([.][0-9]{{1,15}})?$'"
_TIME = (
    "'^[12][0-9]{{3}}-[01][0-9]-[0-3][0-9]"
    "([ T]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{{1,6}})?)?$'"
)


def _read(form: str, kind: str, function: str) -> str:
    """A cast of text: what has the usual form is Spark's to read, and the rest DuckDB's.

    Spark asks a function of Python for every row, those too that a condition around it leaves out.
    So the function refuses nothing; what it cannot read is refused by a cast of Spark's own, made
    to fail by a sign that no value has, which Spark comes to only where the value is needed.
    """
    odd = f"drivetrain_try_{function}(CASE WHEN NOT {{0}} RLIKE {form} THEN {{0}} END)"
    refused = f"{{cast}}(concat({{0}}, '?') AS {kind})"
    usual = f"{{cast}}({{0}} AS {kind})"
    return f"(CASE WHEN {{0}} RLIKE {form} THEN {usual} ELSE coalesce({odd}, {refused}) END)"


def _cased(function: str) -> Callable[[str], str]:
    """Lower or upper case of each code point by itself, as DuckDB has it."""

    def form(value: str) -> str:
        before, after = _cases(function)
        plain = f"octet_length({value}) = length({value})"
        other = f"translate({value}, '{before}', '{after}')"
        return f"(CASE WHEN {plain} THEN {function}({value}) ELSE {other} END)"

    return form


@lru_cache
def _cases(function: str) -> tuple[str, str]:
    """The characters whose case changes, and what they change to."""
    duckdb = need("duckdb", "data")
    with duckdb.connect(":memory:") as connection:
        pairs = connection.execute(
            f"SELECT c, {function}(c) FROM (SELECT chr(CAST(i AS INTEGER)) AS c FROM "
            "(SELECT unnest(generate_series(1, 1114111)) AS i) WHERE i NOT BETWEEN 55296 AND 57343)"
            f" WHERE {function}(c) <> c ORDER BY c"
        ).fetchall()
    return "".join(before for before, _ in pairs), "".join(after for _, after in pairs)


_SPARK = Forms(
    types={
        "string": "STRING",
        "bytes": "BINARY",
        "int64": "BIGINT",
        "float32": "FLOAT",
        "float64": "DOUBLE",
        "timestamp": "TIMESTAMP",
        "bool": "BOOLEAN",
    },
    finite="nanvl({}, CAST(NULL AS DOUBLE))",
    is_finite="(abs({}) < CAST('inf' AS DOUBLE))",
    divide="try_divide({}, {})",
    whole_divide="({} DIV {})",
    floor=_FLOOR,
    round=_ROUND,
    shift=_FROM.format(f"({_EPOCH.format('{a}')} {{sign}} {{b}})"),
    epoch_us=_EPOCH,
    # DuckDB keeps two numbers for its infinite times, and refuses them here.
    from_us=_FROM.format(
        "{0} * CASE WHEN {0} IN (9223372036854775807, -9223372036854775807) THEN 2 ELSE 1 END"
    ),
    make_timestamp=f"(CASE WHEN {{3}} = 24 AND {{4}} = 0 THEN {_AFTER} ELSE {_MADE} END)",
    weekday="weekday({})",
    trim=f"trim(BOTH '{_SPACES}' FROM {{}})",
    lower=_cased("lower"),
    upper=_cased("upper"),
    casts={
        **dict.fromkeys(
            (("float32", "int64"), ("float64", "int64")),
            # Spark takes 2**63 for the greatest integer; an infinity it refuses.
            "{cast}(CASE WHEN {0} >= 9223372036854775808D THEN CAST('inf' AS DOUBLE) "
            "ELSE {0} END AS BIGINT)",
        ),
        ("string", "int64"): _read(_WHOLE, "BIGINT", "int64"),
        ("string", "float64"): _read(_DECIMAL, "DOUBLE", "float64"),
        ("string", "timestamp"): _read(_TIME, "TIMESTAMP", "timestamp"),
        ("float32", "string"): "drivetrain_text32({})",
        ("float64", "string"): "drivetrain_text64({})",
        ("timestamp", "string"): "(CASE WHEN year({0}) BETWEEN 1 AND 9999 "
        "THEN CAST({0} AS STRING) ELSE drivetrain_text_us({0}) END)",
    },
)

FORMS: Mapping[Dialect, Forms] = {"duckdb": _DUCKDB, "spark": _SPARK}
