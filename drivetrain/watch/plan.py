"""Writes described values as people read them: a plan of events step by step, and constructors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

INFIX = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "floor_divide": "//",
    "modulo": "%",
    "equal": "==",
    "not_equal": "!=",
    "less": "<",
    "less_equal": "<=",
    "greater": ">",
    "greater_equal": ">=",
    "and": "&",
    "or": "|",
}
PREFIX = {"not": "~", "negate": "-"}
FUNCTIONS = ("case", "coalesce", "concat", "make_timestamp", "hash")
UNITS = ((86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"))
EMPTY = (None, "", [], {})
HIDDEN = ("type", "code")  # what kind of value it is, and the digest of its class


def steps(events: Any) -> list[str]:
    """A described source, the first step first; a table that is joined is set in below its join.

    Args:
        events: what ``core.describe.describe`` said of the source.
    """
    found: list[Mapping[str, Any]] = []
    while isinstance(events, Mapping):
        found.append(events)
        inner = events.get("source")
        events = inner if isinstance(inner, Mapping) and "type" in inner else None
    return [line for step in reversed(found) for line in _step(step)]


def _step(step: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one step, what came before it left out."""
    write = STEPS.get(step.get("type", ""))
    if write is None and "paths" not in step:
        yield constructor({k: v for k, v in step.items() if k not in ("source", "other")})
    elif write is None:
        yield _files(step)
    else:
        yield from write(step)
    if isinstance(step.get("other"), Mapping):
        yield from (f"    {line}" for line in steps(step["other"]))


def _files(step: Mapping[str, Any]) -> str:
    options = {k: v for k, v in step.items() if k not in ("type", "paths") and v not in EMPTY}
    if options.get("null") == ["", "NA"]:
        del options["null"]
    if options.get("delimiter") == ",":
        del options["delimiter"]
    written = "".join(f", {key}={constructor(value)}" for key, value in options.items())
    return f"{step['type']} {' '.join(step['paths'])}{written}"


def _where(step: Mapping[str, Any]) -> Iterator[str]:
    yield f"where {expression(step['condition'])}"


def _with_columns(step: Mapping[str, Any]) -> Iterator[str]:
    for name, value in step["columns"]:
        yield f"with {_name(name)} = {expression(value)}"


def _rename(step: Mapping[str, Any]) -> Iterator[str]:
    yield "rename " + ", ".join(f"{_name(old)} to {_name(new)}" for new, old in step["columns"])


def _naming(verb: str, key: str) -> Any:
    def write(step: Mapping[str, Any]) -> Iterator[str]:
        yield f"{verb} {', '.join(map(_name, step[key])) or 'every column'}"

    return write


def _join(step: Mapping[str, Any]) -> Iterator[str]:
    yield f"join ({step['how']}) on {_keys(step['on'])}{_taken(step)}"


def _join_asof(step: Mapping[str, Any]) -> Iterator[str]:
    left, right = map(_name, step["on_time"])
    age = step["tolerance_us"]
    within = f", at most {_duration(age)} old" if age is not None else ""
    by = f" by {_keys(step['by'])}" if step["by"] else ""
    order = "<" if step["strict"] else "<="
    yield f"join the last with {right} {order} {left}{by}{within}{_taken(step)}"


def _split(step: Mapping[str, Any]) -> Iterator[str]:
    yield f"split by {constructor(step['by'])}"


STEPS: Mapping[str, Any] = {
    "Where": _where,
    "WithColumns": _with_columns,
    "Select": _naming("select", "names"),
    "Drop": _naming("drop", "names"),
    "DropNulls": _naming("drop rows with a null in", "names"),
    "DropDuplicates": _naming("drop rows that repeat", "by"),
    "Rename": _rename,
    "Join": _join,
    "AsOfJoin": _join_asof,
    "Assign": _split,
}


def _keys(pairs: Sequence[Sequence[str]]) -> str:
    return ", ".join(_name(a) if a == b else f"{_name(a)} = {_name(b)}" for a, b in pairs)


def _taken(step: Mapping[str, Any]) -> str:
    taken = f", takes {', '.join(map(_name, step['columns']))}" if step["columns"] else ""
    return taken + (f", suffix {step['suffix']!r}" if step["suffix"] else "")


def expression(value: Any) -> str:
    """A described expression as it would be written, columns by their bare names."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "Column":
        return _name(value["name"])
    if kind == "Literal":
        return constructor(value["value"])
    if kind == "Duration":
        return _duration(value["microseconds"])
    if kind != "Call":
        return constructor(value)
    operator, arguments = value["operator"], value["arguments"]
    if operator in INFIX:
        return f" {INFIX[operator]} ".join(_side(argument) for argument in arguments)
    if operator in PREFIX:
        return f"{PREFIX[operator]}{_side(arguments[0])}"
    inner = [expression(argument) for argument in arguments]
    if operator in FUNCTIONS:
        return f"{operator}({', '.join(inner)})"
    rest = [*inner[1:], *map(repr, value.get("options", ()))]
    return f"{_side(arguments[0])}.{operator}({', '.join(rest)})"


def _side(value: Any) -> str:
    """An expression beside an operator, in parentheses where it has one itself."""
    nested = isinstance(value, Mapping) and value.get("operator") in (*INFIX, *PREFIX)
    return f"({expression(value)})" if nested else expression(value)


def _name(column: str) -> str:
    return column if column.isidentifier() else f"col({column!r})"


def _duration(microseconds: int) -> str:
    for size, unit in UNITS:
        if microseconds % size == 0 and microseconds:
            return f"{microseconds // size} {unit}"
    return f"{microseconds / 1e6:g} s"


def constructor(value: Any) -> str:
    """A described value as its constructor would be written, what is empty left out."""
    if isinstance(value, Mapping):
        if value.get("type") in ("code", "module"):
            return str(value["name"])
        kind = value.get("type", "")
        fields = {k: v for k, v in value.items() if k not in HIDDEN and v not in EMPTY}
        if "name" in fields and fields["name"] == _default_name(value):
            del fields["name"]
        first = []
        if "name" in value:  # a feature, which names its columns first
            column = [fields.pop("column")] if "column" in fields else []
            first = [constructor(item) for item in (*column, *fields.pop("features", ()))]
        rest = [f"{key}={constructor(item)}" for key, item in fields.items()]
        return f"{kind}({', '.join([*first, *rest])})"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(constructor(item) for item in value)}]"
    return str(value)


def _default_name(value: Mapping[str, Any]) -> str | None:
    """What a feature is called that was given no name: after its columns and its class."""
    kind = str(value.get("type", "")).lower()
    if isinstance(value.get("column"), str):
        return f"{value['column']}_{kind}"
    inner = value.get("features")
    if isinstance(inner, Sequence) and inner and all(isinstance(f, Mapping) for f in inner):
        return "_".join([*(str(f.get("name")) for f in inner), kind])
    return None
