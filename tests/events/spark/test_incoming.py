"""What Spark reads of a topic: the records, and what the connector is told."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import drivetrain as dt
from drivetrain.core.site import EngineSite
from drivetrain.events.spark.incoming import connector_options, records_of, told
from drivetrain.events.table import Table

TYPES: Any = {"n": "int64", "s": "string"}
NOW = time.time_ns() // 1_000_000
"""The time of messages in milliseconds: a broker deletes those that are old."""


def stream_of(steps: Callable[[Table], Table] = lambda table: table, **more: Any) -> dt.Stream:
    given = {"servers": ("a:1", "b:2"), "types": TYPES} | more.pop("leaf", {})
    leaf = dt.Kafka(more.pop("topic", "topic"), **given)
    return dt.Stream(name="made", events=steps(leaf), into="table", **more)


def test_records_are_those_that_were_sent(
    spark: Any, spark_site: EngineSite, broker: Any, tmp_path: Path
) -> None:
    topic = broker.topic(3)
    sent: dict[int, list[bytes | None]] = {
        0: [b"passed over", b"", None, b"\xff\x00"],
        2: [b"last"],
    }
    for partition, values in sent.items():
        key = b"\x00key" if partition else None
        broker.send(topic, values, partition=partition, key=key, timestamp=NOW + partition)
    stream = stream_of(topic=topic, leaf={"servers": broker.servers}, messages=2)
    records = records_of(spark, stream, spark_site, {0: 1, 1: 0, 2: 0})
    batches: list[list[Any]] = []
    write = records.writeStream.foreachBatch(lambda batch, number: batches.append(batch.collect()))
    write = write.option("checkpointLocation", (tmp_path / "query").as_uri())
    write.trigger(availableNow=True).start().awaitTermination()
    found = [tuple(row.asDict().values()) for batch in batches for row in batch]
    assert records.columns == ["partition", "offset", "timestamp", "key", "value"]
    assert sorted(found) == [
        (0, 1, NOW * 1000, None, b""),
        (0, 2, NOW * 1000, None, None),
        (0, 3, NOW * 1000, None, b"\xff\x00"),
        (2, 0, (NOW + 2) * 1000, b"\x00key", b"last"),
    ]
    assert len(batches) >= 2, "so many messages at once were asked for"


@pytest.mark.skipif(
    "DRIVETRAIN_KAFKA_JARS" in os.environ, reason="here the session has the connector"
)
def test_a_session_without_the_connector_is_an_error_that_says_what_brings_it(
    spark: Any, spark_site: EngineSite
) -> None:
    site = replace(spark_site, kafka="connector")
    found = r"found no spark-sql-kafka-0-10, .*, kafka-clients, commons-pool2 in Spark's session"
    with pytest.raises(ValueError, match=rf"{found}.*\[engine\.conf\] \"spark\.jars\""):
        records_of(spark, stream_of(), site, {0: 0})


# -- without a session -----------------------------------------------------------------------------


def test_the_connector_is_told_what_our_source_is() -> None:
    assert connector_options(stream_of(messages=500), {1: 7, 0: 3}) == {
        "kafka.bootstrap.servers": "a:1,b:2",
        "subscribe": "topic",
        "startingOffsets": '{"topic": {"0": 3, "1": 7}}',
        "maxOffsetsPerTrigger": "500",
        "failOnDataLoss": "true",
        "fetchOffset.numRetries": "1",
        "kafka.default.api.timeout.ms": "30000",
        "kafka.isolation.level": "read_committed",
        "kafkaConsumer.pollTimeoutMs": "30000",
    }
    with pytest.raises(ValueError, match="librdkafka's, not the JVM's"):
        connector_options(stream_of(leaf={"properties": "sasl.properties"}), {})


def test_executors_are_told_the_columns_that_the_topic_shows(broker: Any) -> None:
    topic = broker.topic()
    broker.send(topic, [b'{"n": 1, "x": 0.5, "s": "a"}'])
    leaf = dt.Kafka(topic, servers=broker.servers, partition="part")
    table = told(leaf.with_columns(m=dt.col("n") + 1))
    spine = table.chain()[0]
    assert isinstance(spine, dt.Kafka)
    assert dict(spine.types or ()) == {"n": "int64", "x": "float64", "s": "string"}
    assert table.schema == leaf.with_columns(m=dt.col("n") + 1).schema
