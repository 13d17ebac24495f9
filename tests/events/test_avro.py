"""Avro values as rows: with a schema of one's own, and with those of a registry."""

import io
import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pytest
from registry import Registry

from drivetrain.events.kafka import Avro
from drivetrain.events.topic.avro import AvroValues, Schemas, columns_of

FLIGHT: dict[str, Any] = {
    "type": "record",
    "name": "Flight",
    "fields": [
        {"name": "carrier", "type": "string"},
        {"name": "delay", "type": ["null", "double"]},
        {"name": "late", "type": "boolean"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
    ],
}
AT = datetime(2026, 11, 22, 6, 30, tzinfo=UTC)
ROW = {"carrier": "UA", "delay": 1.5, "late": True, "at": AT, "tags": ["a"]}


def written(row: dict[str, Any], schema: dict[str, Any] = FLIGHT, head: bytes = b"") -> bytes:
    sink = io.BytesIO()
    fastavro.schemaless_writer(sink, fastavro.parse_schema(schema), row)
    return head + sink.getvalue()


def values_of(avro: Avro, topic: str = "flights") -> AvroValues:
    schemas = Schemas(avro, topic)
    return AvroValues(columns_of(schemas.read), schemas, "topic 'flights'")


def test_a_record_is_a_row_whose_nested_fields_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "flight.avsc").write_text(json.dumps(FLIGHT))
    decode = values_of(Avro(str(tmp_path / "flight.avsc")))
    found = decode([written(ROW), written({**ROW, "delay": None})])
    first, second = found.rows.to_pylist()
    assert first == {"carrier": "UA", "delay": 1.5, "late": 1, "at": AT.replace(tzinfo=None)}
    assert second["delay"] is None


def test_a_type_that_a_field_names_is_that_type_and_a_decimal_a_number() -> None:
    money = {"type": "fixed", "name": "Money", "size": 8, "logicalType": "decimal"}
    schema: dict[str, Any] = {
        "type": "record",
        "name": "Flight",
        "namespace": "air",
        "fields": [
            {"name": "from", "type": {"type": "enum", "name": "Place", "symbols": ["A", "B"]}},
            {"name": "to", "type": "Place"},
            {"name": "via", "type": ["null", "air.Place"]},
            {"name": "fare", "type": {**money, "precision": 18, "scale": 2}},
            {"name": "back", "type": ["null", "Money"]},
            {"name": "next", "type": ["null", "air.Flight"]},
        ],
    }
    row = {"from": "A", "to": "B", "via": None, "fare": Decimal("-7.25"), "back": None}
    decode = values_of(Avro(json.dumps(schema)))
    (found,) = decode([written({**row, "next": None}, schema)]).rows.to_pylist()
    assert found == {**row, "fare": -7.25}


@pytest.mark.parametrize(
    "value", [b"", b"\x00", written(ROW)[:-1], written(ROW) + b"x", b"\xff" * 9]
)
def test_what_is_no_record_is_refused_and_its_neighbours_stay(value: bytes) -> None:
    found = values_of(Avro(json.dumps(FLIGHT)))([written(ROW), value, written(ROW)])
    assert found.origin.tolist() == [0, 2]
    assert list(found.refused) == [1]
    assert found.refused[1]


@pytest.mark.parametrize("schema", ["[", '"string"', '{"type": "record"}', '{"type": "array"}'])
def test_a_schema_that_is_none_of_a_record_says_so(schema: str) -> None:
    with pytest.raises(ValueError, match="Avro schema of flights"):
        Schemas(Avro(schema), "flights").read  # noqa: B018


def test_avro_without_schema_and_registry_is_refused() -> None:
    with pytest.raises(ValueError, match="Avro: found 'neither'"):
        Avro()


@pytest.fixture
def registry() -> Iterator[str]:
    """A registry with two versions of a schema: the second has lost a field and got another."""
    newer = {**FLIGHT, "fields": [*FLIGHT["fields"][:3], {**FLIGHT["fields"][3]}]}
    newer["fields"].append({"name": "seats", "type": "long", "default": 180})
    known = {
        "/schemas/ids/1": FLIGHT,
        "/schemas/ids/2": newer,
        "/subjects/flights-value/versions/latest": newer,
    }
    with Registry(known) as found:
        yield found.address


def test_what_was_written_with_an_older_schema_is_read_with_the_newest(registry: str) -> None:
    decode = values_of(Avro(registry=registry))
    old = written(ROW, head=b"\x00" + struct.pack(">I", 1))
    (row,) = decode([old]).rows.to_pylist()
    assert (row["carrier"], row["seats"]) == ("UA", 180)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\x00\x00\x00\x00\x09abc", "no schema at /schemas/ids/9"),
        (b"\x01\x00\x00\x00\x01abc", "no schema's number"),
        (b"\x00\x00", "no schema's number"),
    ],
)
def test_a_value_without_a_known_schema_is_refused(
    registry: str, value: bytes, reason: str
) -> None:
    found = values_of(Avro(registry=registry))([value])
    assert reason in found.refused[0]


def test_a_registry_that_is_away_is_no_fault_of_the_value() -> None:
    with pytest.raises(ConnectionError, match="registry does not answer"):
        values_of(Avro(registry="http://127.0.0.1:9"))
