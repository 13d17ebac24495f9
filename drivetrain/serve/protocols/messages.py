"""Protobuf messages out of a few lines of text each, with no generated code and no global names."""

import re
from collections.abc import Mapping, Sequence, Set
from types import ModuleType
from typing import Any

from drivetrain.core.need import need

_DECLARATION = re.compile(r"^(\w+) ?([:=])([^:=]*)$", re.MULTILINE)
_CONSTANT = re.compile(r"(\w+) (\d+)")
_FIELD = re.compile(r"(\d+) (\w+) (\*?)(?:\{(\w+)\}|(\w+))(?:\|(\w+))?")


def import_protobuf() -> Sequence[ModuleType]:
    """What compiles messages: most of the time that the first of them take. On any thread.

    Raises:
        ImportError: protobuf is not installed.
    """
    names = ("descriptor_pb2", "descriptor_pool", "message_factory")
    return [need(f"google.protobuf.{name}", "grpc") for name in names]


def compile_messages(package: str, text: str) -> Mapping[str, Any]:
    """The message classes that a text declares, by name, in a pool of their own.

    ``Name: field, field, …`` declares a message, on as many lines as it takes, and a field is
    ``number name type``. A type is a scalar
    type of proto3, or what the same text declares; ``*type`` is repeated, ``{type}`` a map from
    strings, and ``type|choice`` a member of the oneof ``choice``. ``Name = CONSTANT number, …``
    declares an enumeration.

    Args:
        package: where the names live; it is not seen on the wire.
        text: the declarations.

    Raises:
        ImportError: protobuf is not installed.
    """
    descriptor_pb2, descriptor_pool, message_factory = import_protobuf()
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3"
    )
    found = _DECLARATION.findall(text)
    enums = {name for name, sign, _ in found if sign == "="}
    for name, sign, content in found:
        parts = [part.strip() for part in content.split(",") if part.strip()]
        if sign == "=":
            _declare_enum(file.enum_type.add(name=name), parts)
        else:
            _declare(file.message_type.add(name=name), parts, _Types(package, enums))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{package}.{message.name}")
        )
        for message in file.message_type
    }


class _Types:
    """Says of a field what its type is.

    Args:
        package: where the names live.
        enums: which of them are enumerations.
    """

    def __init__(self, package: str, enums: Set[str]) -> None:
        self._package = package
        self._enums = enums

    def set(self, field: Any, kind: str) -> None:
        """Give a field its type."""
        scalar = getattr(field, f"TYPE_{kind.upper()}", None)
        if scalar is not None:
            field.type = scalar
            return
        field.type = field.TYPE_ENUM if kind in self._enums else field.TYPE_MESSAGE
        field.type_name = f".{self._package}.{kind}"


def _declare_enum(enum: Any, constants: Sequence[str]) -> None:
    for text in constants:
        match = _CONSTANT.fullmatch(text)
        assert match is not None, text
        enum.value.add(name=match[1], number=int(match[2]))


def _declare(message: Any, fields: Sequence[str], types: _Types) -> None:
    choices: dict[str, int] = {}
    for text in fields:
        match = _FIELD.fullmatch(text)
        assert match is not None, text
        number, name, repeated, of_map, kind, choice = match.groups()
        field = message.field.add(name=name, number=int(number))
        field.label = field.LABEL_REPEATED if repeated or of_map else field.LABEL_OPTIONAL
        if of_map:
            kind = f"{message.name}.{name.title().replace('_', '')}Entry"
            _declare_entry(message, kind.partition(".")[2], of_map, types)
        types.set(field, kind)
        if choice:
            if choice not in choices:
                choices[choice] = len(choices)
                message.oneof_decl.add(name=choice)
            field.oneof_index = choices[choice]


def _declare_entry(message: Any, name: str, kind: str, types: _Types) -> None:
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    key = entry.field.add(name="key", number=1)
    key.label, key.type = key.LABEL_OPTIONAL, key.TYPE_STRING
    value = entry.field.add(name="value", number=2)
    value.label = value.LABEL_OPTIONAL
    types.set(value, kind)
