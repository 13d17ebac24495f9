"""A topic as a table: bounded by what there is, in a fixed order, with its values' columns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import drivetrain as dt
from drivetrain.core.describe import canonical, describe
from drivetrain.events.follow.dead import letters
from drivetrain.events.prepared import fingerprint, prepare
from drivetrain.events.topic.messages import BEYOND, Messages, Refused
from drivetrain.events.topic.topic import Topic

TYPES: Any = {"n": "int64", "s": "string"}


def send(broker: Any, topic: str, values: Sequence[Any], *partitions: int, **more: Any) -> None:
    """Write messages, plain data as JSON, to partitions in turn."""
    data = [json.dumps(v).encode() if isinstance(v, dict) else v for v in values]
    for place, partition in enumerate(partitions):
        broker.send(topic, data[place :: len(partitions)], partition=partition, **more)


def rows(table: Any, chunk: int = 3) -> list[dict[str, Any]]:
    leaf = table.chain()[0]
    tables = list(leaf.chunks(leaf.schema, chunk))
    assert all(0 < len(each) <= chunk for each in tables)
    return [row for each in tables for row in each.to_pylist()]


def test_rows_come_in_order_of_partition_and_offset(broker: Any, topic: str) -> None:
    values = [{"n": n, "s": f"row {n}"} for n in range(10)]
    send(broker, topic, values, 0, 1, key=b"k")
    leaf = dt.Kafka(
        topic, servers=broker.servers, types=TYPES, key="key", partition="p", offset="o"
    )
    found = rows(leaf)
    assert [row["n"] for row in found] == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert found[1] == {"n": 2, "s": "row 2", "key": "k", "p": 0, "o": 1}


def test_columns_are_told_from_the_first_values_where_none_are_declared(
    broker: Any, topic: str
) -> None:
    send(broker, topic, [{"n": 1, "x": 0.5, "deep": {"a": 1}}, {"s": "b"}], 1)
    schema = dt.Kafka(topic, servers=broker.servers, timestamp="sent").schema
    found = {f.name: f.dtype for f in schema}
    assert found == {"n": "int64", "x": "float64", "s": "string", "sent": "timestamp"}


def test_an_empty_topic_has_no_rows_and_cannot_show_its_columns(broker: Any, topic: str) -> None:
    assert rows(dt.Kafka(topic, servers=broker.servers, types=TYPES)) == []
    with pytest.raises(ValueError, match=f"{topic}.*found no message, allowed: JSON objects"):
        _ = dt.Kafka(topic, servers=broker.servers).schema


def test_reading_begins_and_ends_where_it_is_told(broker: Any, topic: str) -> None:
    send(broker, topic, [{"n": n} for n in range(10)], 0, 1)
    leaf = dt.Kafka(topic, servers=broker.servers, types=TYPES, start={0: 2}, end={0: 4, 1: 1})
    assert [row["n"] for row in rows(leaf)] == [4, 6, 1]
    later = dt.Kafka(topic, servers=broker.servers, types=TYPES, start="2099-01-01")
    assert rows(later) == []
    earlier = dt.Kafka(topic, servers=broker.servers, types=TYPES, start="2020-01-01T00:00")
    assert len(rows(earlier)) == 10


def test_a_pinned_topic_does_not_see_what_is_written_later(broker: Any, topic: str) -> None:
    send(broker, topic, [{"n": n} for n in range(3)], 0)
    send(broker, topic, [{"n": 3}], 1)
    leaf = dt.Kafka(topic, servers=broker.servers, types=TYPES)
    pinned, before = leaf.pinned(), fingerprint(leaf)
    assert fingerprint(leaf) == before
    send(broker, topic, [{"n": 9}], 0)
    assert fingerprint(leaf) != before
    assert [row["n"] for row in rows(pinned)] == [0, 1, 2, 3]
    assert pinned.pinned() is pinned
    named = {"topic": topic, "id": "", "offsets": {"0": [0, 3], "1": [0, 1]}}
    assert pinned.lineage() == named


def test_a_message_that_does_not_fit_is_named_by_topic_partition_and_offset(
    broker: Any, topic: str
) -> None:
    send(broker, topic, [{"n": 1}, {"n": 2}, b"torn"], 1)
    with pytest.raises(ValueError, match=f"'{topic}', partition 1, offset 2: found 'torn'"):
        rows(dt.Kafka(topic, servers=broker.servers, types=TYPES))


def test_a_tombstone_is_refused_or_skipped_as_declared(broker: Any, topic: str) -> None:
    send(broker, topic, [{"n": 1}, None, {"n": 2}], 0, key=b"k")
    with pytest.raises(ValueError, match="offset 1: found no value"):
        rows(dt.Kafka(topic, servers=broker.servers, types=TYPES))
    skipping = dt.Kafka(topic, servers=broker.servers, types=TYPES, tombstones="skip", offset="o")
    assert [(row["n"], row["o"]) for row in rows(skipping)] == [(1, 0), (2, 2)]


def test_a_topic_is_prepared_like_any_table(broker: Any, topic: str, tmp_path: Path) -> None:
    send(broker, topic, [{"n": n, "s": "a"} for n in range(300)], 0, 1)
    table = dt.Kafka(topic, servers=broker.servers, types=TYPES).where(dt.col("n") >= 100)
    laid = prepare(table, ["n"], tmp_path / "laid")
    assert sum(laid.rows(split) for split in ("train", "validate", "test")) == 200
    again = prepare(table, ["n"], tmp_path / "again")
    assert again.digest == laid.digest
    assert list(laid.sources) == [
        {"topic": topic, "id": "", "offsets": {"0": [0, 150], "1": [0, 150]}}
    ]


def test_where_a_topic_lies_and_its_secrets_are_in_no_declaration(tmp_path: Path) -> None:
    (tmp_path / "secret.properties").write_text("sasl.password=hunter2\n")
    path = str(tmp_path / "secret.properties")
    leaf = dt.Kafka("t", servers="broker.example:9092", types=TYPES, properties=path)
    other = dt.Kafka("t", servers="elsewhere.example:9092", types=TYPES)
    text = canonical(describe(leaf))
    assert text == canonical(describe(other))
    assert "example" not in text
    assert "secret" not in text
    schema = {"type": "record", "name": "R", "fields": []}
    (tmp_path / "r.avsc").write_text(json.dumps(schema))
    by_path = dt.Kafka("t", servers="a:1", format=dt.Avro(str(tmp_path / "r.avsc")))
    by_text = dt.Kafka("t", servers="a:1", format=dt.Avro(json.dumps(schema)))
    assert describe(by_path) == describe(by_text)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"servers": ""}, "servers: found ''"),
        ({"format": "xml"}, "format: found 'xml', allowed: 'json', 'arrow' or Avro"),
        ({"types": {"n": "int"}}, "unknown type 'int'.*Did you mean 'int64'"),
        ({"tombstones": "drop"}, "unknown rule 'drop'.*Allowed: refuse, skip"),
        ({"start": "yesterday"}, "start: found 'yesterday'.*ISO 8601"),
        ({"start": {0: -1}}, "partitions and offsets from 0"),
        ({"types": {"n": "int64"}, "key": "n"}, "column: found 'n', allowed: each name once"),
    ],
)
def test_a_mistaken_declaration_says_what_is_allowed(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dt.Kafka("t", **{"servers": "a:1", **given})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("enable.auto.commit=true", "line 1: found 'enable.auto.commit'.*offsets lie in the table"),
        ("no.such.property=1", "no.such.property"),
        ("fetch.min.bytes", "allowed: key=value"),
    ],
)
def test_a_mistaken_property_says_what_is_allowed(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "kafka.properties"
    path.write_text(f"{line}\n")
    leaf = dt.Kafka("t", servers="127.0.0.1:9", types=TYPES, properties=str(path))
    with pytest.raises(ValueError, match=says):
        rows(leaf)


def test_a_topic_that_is_not_there_is_named(broker: Any) -> None:
    with pytest.raises(FileNotFoundError, match="topic 'absent'"):
        rows(dt.Kafka("absent", servers=broker.servers, types=TYPES))


def test_a_range_whose_broker_stays_gone_is_an_error(
    own_broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivetrain.events.topic.topic.SILENCE", 0.5)
    topic = own_broker.topic(1)
    send(own_broker, topic, [{"n": n} for n in range(10)], 0)
    with Topic(dt.Kafka(topic, servers=own_broker.servers, types=TYPES)) as source:
        assert [len(found) for found in source.within(0, 0, 10, 5)] == [5, 5]
        own_broker.stop()
        with pytest.raises(ConnectionError, match=f"'{topic}' at .* found no answer"):
            list(source.within(0, 5, 20, 5))


def test_a_streams_table_may_be_partitioned_by_the_day_of_a_time() -> None:
    events = dt.Kafka("t", servers="127.0.0.1:9", types={**TYPES, "at": "timestamp"})
    days = dt.Stream(name="made", events=events, into="table", partition_by="day(at)")
    assert days.check().names == ("n", "s", "at")
    other = dt.Stream(name="made", events=events, into="table", partition_by="day(on)")
    with pytest.raises(ValueError, match=r"unknown column 'on' .*Stream\.partition_by"):
        other.check()


class Sent:
    """A message whose clock said this."""

    def __init__(self, kind: int, at: int) -> None:
        self._clock = kind, at

    def timestamp(self) -> tuple[int, int]:
        return self._clock

    def topic(self) -> str:
        return "made"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0

    def key(self) -> None:
        return None

    def value(self) -> bytes:
        return b"torn"


def test_a_clock_that_counts_no_milliseconds_says_nothing() -> None:
    now = 1_795_000_000_000
    clocks = [(1, now), (1, now * 1_000_000), (1, BEYOND), (2, BEYOND - 1), (0, now), (1, -1)]
    due = [now * 1000, -1, -1, (BEYOND - 1) * 1000, -1, -1]
    sent = [Sent(*clock) for clock in clocks]
    assert Messages(sent).times().tolist() == due
    table = letters(Messages(sent), [Refused(place, "torn") for place in range(len(sent))])
    times = [row and row.year for row in table["timestamp"].to_pylist()]
    assert times == [2026, None, None, 9999, None, None]
