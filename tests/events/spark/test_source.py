"""The Spark source of a topic: what its micro-batches take, planned and read without Spark."""

import json
import time
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql.streaming.datasource import ReadAllAvailable, ReadMaxRows

from drivetrain.events.spark.source import KafkaSource, Range, Reader, shared

ALL = ReadAllAvailable()
NOW = time.time_ns() // 1_000_000
"""The time of messages in milliseconds: a broker deletes those that are old."""


def reader(broker: Any, topic: str, rows: int = 0, **positions: int) -> Reader:
    given = {"servers": broker.servers, "topic": topic, "properties": ""}
    at = {number.removeprefix("p"): offset for number, offset in positions.items()}
    options = {**given, "positions": json.dumps(at), "rows": str(rows)}
    return KafkaSource(options).streamReader(None)


def read(from_: Reader, span: Range) -> list[dict[str, Any]]:
    batches = [*from_.read(span)]
    return pa.Table.from_batches(batches).to_pylist() if batches else []


@pytest.fixture
def topic(broker: Any) -> str:
    """A topic of two partitions, with five messages in the first and three in the second."""
    name = broker.topic(2)
    for partition, count in enumerate((5, 3)):
        values = [b"%d-%d" % (partition, n) for n in range(count)]
        broker.send(name, values, partition=partition, key=b"k", timestamp=NOW)
    return name


def test_it_begins_where_it_is_told_and_elsewhere_with_the_oldest(broker: Any, topic: str) -> None:
    assert reader(broker, topic, p0=2).initialOffset() == {"0": 2, "1": 0}
    broker.truncate(topic, {1: 2})
    assert reader(broker, topic).initialOffset() == {"0": 0, "1": 2}


def test_a_partition_of_kafka_is_one_of_spark(broker: Any, topic: str) -> None:
    source = reader(broker, topic, p0=2)
    start = source.initialOffset()
    end = source.latestOffset(start, ALL)
    assert end == {"0": 5, "1": 3}
    assert source.partitions(start, end) == [Range(0, 2, 5), Range(1, 0, 3)]
    assert source.partitions(end, end) == []


def test_records_are_read_as_they_lie_there(broker: Any, topic: str) -> None:
    source = reader(broker, topic)
    assert read(source, Range(1, 1, 3)) == [
        {"partition": 1, "offset": n, "timestamp": NOW * 1000, "key": b"k", "value": b"1-%d" % n}
        for n in (1, 2)
    ]


def test_ranges_may_be_read_in_any_order_and_again(broker: Any, topic: str) -> None:
    """A task that is tried twice, or that another process did the one before of."""
    source = reader(broker, topic)
    for first, last in ((0, 2), (2, 5), (0, 2), (4, 5), (1, 4)):
        found = [record["offset"] for record in read(source, Range(0, first, last))]
        assert found == list(range(first, last))


def test_a_tombstone_is_a_record_without_a_value(broker: Any, topic: str) -> None:
    broker.send(topic, [None])
    (record,) = read(reader(broker, topic), Range(0, 5, 6))
    assert record["value"] is None


def test_a_bound_is_shared_by_what_waits(broker: Any, topic: str) -> None:
    source = reader(broker, topic, rows=4)
    assert source.getDefaultReadLimit() == ReadMaxRows(4)
    start = source.initialOffset()
    assert source.latestOffset(start, ReadMaxRows(4)) == {"0": 3, "1": 2}
    assert reader(broker, topic).getDefaultReadLimit() == ALL


@pytest.mark.parametrize("rows", [1, 3, 7, 10_000])
def test_bounded_batches_reach_every_end(rows: int) -> None:
    at, ends = {"0": 0, "1": 90, "2": 4}, {"0": 1000, "1": 97, "2": 4}
    for _ in range(1_010):
        new = shared(at, ends, rows)
        assert all(at[n] <= new[n] <= ends[n] for n in ends)
        assert sum(new[n] - at[n] for n in ends) <= rows + len(ends)
        at = new
    assert at == ends


def test_what_comes_after_the_beginning_of_a_bounded_run_is_not_read(
    broker: Any, topic: str
) -> None:
    source = reader(broker, topic)
    source.prepareForTriggerAvailableNow()
    broker.send(topic, [b"late"])
    start = source.initialOffset()
    assert source.latestOffset(start, ALL) == {"0": 5, "1": 3}


def test_a_partition_that_is_added_begins_with_its_oldest(broker: Any, topic: str) -> None:
    source = reader(broker, topic)
    before = source.latestOffset(source.initialOffset(), ALL)
    broker.grow(topic, 3)
    broker.send(topic, [b"2-0"], partition=2)
    found = source.latestOffset(before, ALL)
    assert source.partitions(before, found) == []
    after = source.latestOffset(found, ALL)
    assert source.partitions(found, after) == [Range(2, 0, 1)]


def test_records_that_expired_before_they_were_read_are_an_error(broker: Any, topic: str) -> None:
    broker.truncate(topic, {0: 4})
    with pytest.raises(ValueError, match="partition 0: found the offset 2, allowed: 4 to 5"):
        reader(broker, topic).latestOffset({"0": 2, "1": 0}, ALL)


def test_a_topic_that_was_made_anew_is_an_error(broker: Any, topic: str) -> None:
    with pytest.raises(ValueError, match="found the offset 9, allowed: 0 to 3; it was made anew"):
        reader(broker, topic).latestOffset({"0": 5, "1": 9}, ALL)
    with pytest.raises(ValueError, match="partition 7: found the offset 9"):
        reader(broker, topic, p7=9).initialOffset()


def test_a_range_that_the_topic_does_not_have_is_an_error(broker: Any, topic: str) -> None:
    with pytest.raises(ValueError, match="partition 0: found the offset 7, allowed: 0 to 5"):
        read(reader(broker, topic), Range(0, 7, 9))
