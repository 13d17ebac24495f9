"""Declarations as plain data: for digests, for lineage and for people to read."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def describe(value: object) -> Any:
    """``value`` as JSON-like data that changes when what it declares changes.

    Dataclasses become ``{"type": …, field: …}``; a function or a class that is not a dataclass
    is described by its name and the digest of its source.

    Raises:
        TypeError: the value has no canonical description.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"type": "bytes", "sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((describe(item) for item in value), key=canonical)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.metadata.get("declared", True)
        }
        return {"type": type(value).__name__, **fields}
    if isinstance(value, type) or callable(value):
        return _describe_code(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    return {"type": type(value).__qualname__, **describe(vars(value))}


def _describe_code(value: Any) -> dict[str, str]:
    name = getattr(value, "__qualname__", type(value).__qualname__)
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        source = name  # a builtin or a compiled function: its name is all there is
    return {"type": "code", "name": name, "sha256": hashlib.sha256(source.encode()).hexdigest()}


def canonical(value: object) -> str:
    """Canonical JSON of a described value: sorted keys, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(*values: object) -> str:
    """SHA-256 (hexadecimal) over the canonical descriptions of ``values``."""
    return hashlib.sha256(canonical([describe(value) for value in values]).encode()).hexdigest()
