"""Declarations as plain data: for digests, for lineage and for people to read."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast


def describe(value: object) -> Any:
    """``value`` as JSON-like data that changes when what it declares changes.

    Objects become ``{"type": …, field: …}``, those of other packages with the digest of their
    class's source as ``code``; a function or a class is described by its name, the digest of its
    source and what it holds: defaults, the variables that it closes over, the arguments of a
    ``functools.partial``, the object of a bound method. Globals that a function reads are not
    followed.

    A field of a dataclass whose metadata has ``declared`` as False is left out; one with ``as``
    is described by what that function makes of it.

    Raises:
        TypeError: the value has no canonical description.
    """
    return _describe(value, ())


def _describe(value: object, inside: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"type": "bytes", "sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, ModuleType):
        return {"type": "module", "name": value.__name__}
    if id(value) in inside:  # such as a recursive function, which closes over itself
        return {"type": "cycle", "depth": len(inside) - inside.index(id(value))}
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(key): _describe(item, inside) for key, item in items}
    if isinstance(value, tuple | list):
        return [_describe(item, inside) for item in cast("Iterable[object]", value)]
    if isinstance(value, set | frozenset):
        members = cast("Iterable[object]", value)
        return sorted((_describe(item, inside) for item in members), key=canonical)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _describe(_declared(value, field), inside)
            for field in dataclasses.fields(value)
            if field.metadata.get("declared", True)
        }
        return {"type": type(value).__name__, **fields, **_own_code(type(value))}
    if isinstance(value, type) or callable(value):
        return _describe_code(value, inside)
    return _describe_object(value, inside)


def _declared(value: object, field: "dataclasses.Field[Any]") -> object:
    """A field's value, or what its metadata ``as`` makes of it: the part that is declared."""
    found: object = getattr(value, field.name)
    part = field.metadata.get("as")
    return found if part is None else part(found)


def _describe_object(value: Any, inside: tuple[int, ...]) -> Any:
    kind = type(value).__qualname__
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):  # an array or scalar of numpy
        content = hashlib.sha256(value.tobytes()).hexdigest()
        shape = list(value.shape)
        return {"type": kind, "dtype": str(value.dtype), "shape": shape, "sha256": content}
    code = _own_code(cast("object", value).__class__)
    try:
        held = cast("object", vars(value))
    except TypeError:  # without a dictionary, such as torch.float32: what a copy is made from
        try:
            held, code = {"value": value.__reduce__()}, {}
        except TypeError:
            raise TypeError(f"{value!r}, a {kind}, has no canonical description") from None
    return {"type": kind, **_describe(held, inside), **code}


def _describe_code(value: Any, inside: tuple[int, ...]) -> dict[str, Any]:
    held: dict[str, object]
    if isinstance(value, partial):
        made = cast("partial[Any]", value)
        held = {"of": made.func, "arguments": made.args, "keywords": made.keywords}
        return {"type": "partial", **_describe(held, inside)}
    if isinstance(value, MethodType):
        held = {"of": value.__func__, "self": value.__self__}
        return {"type": "method", **_describe(held, inside)}
    if not isinstance(value, type | FunctionType) and hasattr(value, "__dict__"):
        held = {"class": cast("object", type(value)), "holds": vars(value)}
        return {"type": "callable", **_describe(held, inside)}
    name = getattr(value, "__qualname__", type(value).__qualname__)
    code = {"type": "code", "name": name, "sha256": _source_digest(value, name)}
    held = _held(value) if isinstance(value, FunctionType) else {}
    return {**code, "holds": _describe(held, inside)} if held else code


def _own_code(kind: type) -> dict[str, str]:
    """What a user's own class does; that of this package is known by the package's version."""
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return {}
    return {"code": _source_digest(kind, kind.__qualname__)}


def _source_digest(value: Any, name: str) -> str:
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        # Typed at a prompt it has its instructions, and a builtin has nothing but its name.
        source = _compiled(value.__code__) if isinstance(value, FunctionType) else name
    return hashlib.sha256(source.encode()).hexdigest()


def _compiled(constant: object) -> str:
    """What a function without source does: its instructions, the names and constants in them."""
    if isinstance(constant, frozenset):  # is in another order in each process
        return repr(sorted(map(repr, cast("frozenset[object]", constant))))
    if not isinstance(constant, CodeType):
        return repr(constant)
    names = (constant.co_name, constant.co_names, constant.co_varnames)
    return repr((names, constant.co_code.hex(), [_compiled(c) for c in constant.co_consts]))


def _held(function: FunctionType) -> dict[str, object]:
    """What a function carries beside its source: defaults and closed-over variables."""
    held: dict[str, object] = {}
    if function.__defaults__ or function.__kwdefaults__:
        held["defaults"] = [function.__defaults__, function.__kwdefaults__]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[name] = cell.cell_contents
        except ValueError:
            continue  # declared and not yet assigned
    return held


def canonical(value: object) -> str:
    """Canonical JSON of a described value: sorted keys, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(*values: object) -> str:
    """SHA-256 (hexadecimal) over the canonical descriptions of ``values``."""
    return hashlib.sha256(canonical([describe(value) for value in values]).encode()).hexdigest()
