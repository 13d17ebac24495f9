"""Values in Avro's binary encoding as Arrow rows; their schemas come from a file or a registry."""

import io
import json
import struct
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.core.schema import Schema
from drivetrain.events.kafka import Avro
from drivetrain.events.reading.arrow import TYPES, normalise, schema_of_arrow
from drivetrain.events.topic.decode import Decoded, by_halves, one_line

SECONDS = 10.0
"""How long a registry may take to answer."""

_PLAIN = {
    "boolean": pa.bool_(),
    "int": pa.int64(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
    "enum": pa.string(),
    "fixed": pa.binary(),
    "null": pa.null(),
}
_LOGICAL = {
    "date": pa.date32(),
    "timestamp-millis": pa.timestamp("us", "UTC"),
    "timestamp-micros": pa.timestamp("us", "UTC"),
    "local-timestamp-millis": pa.timestamp("us"),
    "local-timestamp-micros": pa.timestamp("us"),
}
_OTHER = ("duration", "time-millis", "time-micros", "uuid")
"""Logical types whose values are no numbers, texts or times that a column holds."""

_NAMED = "__named_schemas"
"""Where fastavro keeps the types that a parsed schema defines, by their full names."""


class Schemas:
    """The schemas of a topic's values.

    Args:
        avro: as it was declared.
        topic: whose values they are; its subject is ``<topic>-value``.
    """

    def __init__(self, avro: Avro, topic: str) -> None:
        self._avro, self._topic = avro, topic
        self._written: dict[int, Any] = {}

    @cached_property
    def read(self) -> Any:
        """The schema that values are read with.

        Raises:
            OSError: its file cannot be read, or the registry does not answer.
            ValueError: it is no schema of a record.
        """
        text = self._avro.text
        if not text:
            text = self._ask(f"/subjects/{self._topic}-value/versions/latest")["schema"]
        found = _parsed(text, f"Avro schema of {self._topic}")
        if not isinstance(found, Mapping) or found.get("type") != "record":
            raise wrong(f"Avro schema of {self._topic}", text, "a record")
        return found

    @property
    def framed(self) -> bool:
        """Whether values begin with the number of their schema."""
        return bool(self._avro.registry)

    def written(self, number: int) -> Any:
        """The schema of that number in the registry.

        Raises:
            OSError: the registry does not answer.
            ValueError: it has none.
        """
        if number not in self._written:
            text = self._ask(f"/schemas/ids/{number}")["schema"]
            self._written[number] = _parsed(text, f"Avro schema {number}")
        return self._written[number]

    def _ask(self, path: str) -> Mapping[str, Any]:
        address = self._avro.registry.rstrip("/") + path
        if not address.startswith(("http://", "https://")):
            raise wrong("Avro registry", self._avro.registry, "an address such as http://host:8081")
        try:
            with urllib.request.urlopen(address, timeout=SECONDS) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise ValueError(f"the registry has no schema at {path}") from None
            text = f"the registry answers {path} with status {error.code}"
            raise (ConnectionError if error.code >= 500 else OSError)(text) from error
        except OSError as error:
            raise ConnectionError(f"the registry does not answer: {error}") from error


def _parsed(text: str, where: str) -> Any:
    fastavro = need("fastavro", "kafka")
    try:
        return fastavro.parse_schema(json.loads(text))
    except (ValueError, KeyError, fastavro.schema.SchemaParseException) as error:
        raise wrong(where, text, f"a schema as Avro has it ({one_line(error)})") from None


def columns_of(read: Any) -> Schema:
    """The columns of a record; fields of nested types are left out, as they are from files."""
    kinds = _kinds(read).items()
    return schema_of_arrow(pa.schema([(name, kind) for name, kind in kinds if kind is not None]))


def _kinds(read: Any) -> dict[str, pa.DataType | None]:
    """The Arrow type of each field of a record; None where no column holds it."""
    return {item["name"]: _kind(item["type"], read[_NAMED]) for item in read["fields"]}


def _kind(declared: Any, named: Mapping[str, Any]) -> pa.DataType | None:
    if isinstance(declared, list):  # a union: of one type, and null
        kinds = [item for item in declared if item != "null"]
        return _kind(kinds[0], named) if len(kinds) == 1 else None
    if isinstance(declared, Mapping):
        logical = declared.get("logicalType")
        if logical in _LOGICAL:
            return _LOGICAL[logical]
        if logical == "decimal":
            return _decimal(declared["precision"], declared.get("scale", 0))
        return None if logical in _OTHER else _kind(declared["type"], named)
    return _kind(named[declared], named) if declared in named else _PLAIN.get(declared)


def _decimal(precision: int, scale: int) -> pa.DataType | None:
    """Read exactly, to be a float64 as decimals in files are; None for more digits than Arrow's."""
    if precision <= 38:
        return pa.decimal128(precision, scale)
    return pa.decimal256(precision, scale) if precision <= 76 else None


class AvroValues:
    """Each value one record; a class of its own keeps the schemas that were asked for.

    Args:
        schema: the columns.
        schemas: of the topic's values.
        where: the topic, for errors.
    """

    def __init__(self, schema: Schema, schemas: Schemas, where: str) -> None:
        self._schema, self._schemas, self._where = schema, schemas, where
        self._read = need("fastavro", "kafka").schemaless_reader
        kinds = _kinds(schemas.read)
        self._kinds = {f.name: kinds.get(f.name) or TYPES[f.dtype] for f in schema}

    def __call__(self, values: Sequence[bytes]) -> Decoded:
        records, kept = [], []
        refused: dict[int, str] = {}
        for number, value in enumerate(values):
            found = self._record(value)
            if isinstance(found, str):
                refused[number] = found
            else:
                records.append(found)
                kept.append(number)
        places = np.array(kept, np.int64)
        typed = by_halves(records, self._rows, self._schema)
        refused |= {int(places[place]): reason for place, reason in typed.refused.items()}
        return Decoded(typed.rows, places[typed.origin], refused)

    def _record(self, value: bytes) -> Any:
        """The record that a value holds, or why it holds none."""
        opened = io.BytesIO(value)
        written = self._schemas.read
        if self._schemas.framed:
            head = opened.read(5)
            if len(head) < 5 or head[0]:
                return "found no schema's number before the record, allowed: a zero byte and it"
            try:
                written = self._schemas.written(struct.unpack(">I", head[1:])[0])
            except ValueError as error:
                return str(error)
        try:
            found = self._read(opened, written, self._schemas.read)
        except Exception as error:  # of a value that anybody wrote, whatever it makes it stumble on
            return f"{type(error).__name__}: {one_line(error)}"
        left = len(value) - opened.tell()
        return f"found {left} bytes behind the record, allowed: none" if left else found

    def _rows(self, records: Any) -> "tuple[pa.Table, Array | None] | str":
        try:
            columns = {
                name: pa.array([record.get(name) for record in records], kind)
                for name, kind in self._kinds.items()
            }
            table = normalise(pa.table(columns), self._schema, self._where)
        except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, TypeError, OverflowError) as error:
            return one_line(error)
        return table, None
