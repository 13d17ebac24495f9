"""What Spark reads of a topic: by our own source, or by its connector."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from drivetrain.core.errors import wrong
from drivetrain.core.site import EngineSite
from drivetrain.events.kafka import Kafka
from drivetrain.events.stream import Stream
from drivetrain.events.table import Step, Table


def records_of(spark: Any, stream: Stream, site: EngineSite, at: Mapping[int, int]) -> Any:
    """A streaming ``DataFrame`` of the raw records of a stream's topic.

    Args:
        spark: the session.
        stream: whose topic.
        site: says who reads it.
        at: the offset that each of the topic's partitions is read from on.

    Raises:
        ValueError: the connector is asked for and not there, or does not do what is declared.
    """
    if site.kafka == "connector":
        options = connector_options(stream, at)
        hold_jars(spark)
        found = spark.readStream.format("kafka").options(**options).load()
        return found.selectExpr(*CONNECTOR_COLUMNS)
    from drivetrain.events.spark.source import NAME, KafkaSource

    leaf = stream.topic
    spark.dataSource.register(KafkaSource)
    options = {
        "servers": leaf.brokers,
        "topic": leaf.topic,
        "properties": leaf.properties,
        "positions": json.dumps({str(number): offset for number, offset in at.items()}),
        "rows": str(stream.messages),
    }
    return spark.readStream.format(NAME).options(**options).load()


JARS: Mapping[str, str] = {
    "spark-sql-kafka-0-10": "org.apache.spark.sql.kafka010.KafkaSourceProvider",
    "spark-token-provider-kafka-0-10": "org.apache.spark.kafka010.KafkaConfigUpdater",
    "kafka-clients": "org.apache.kafka.clients.consumer.KafkaConsumer",
    "commons-pool2": "org.apache.commons.pool2.PooledObject",
}
"""What the connector consists of, and a class of each."""

CONNECTOR_COLUMNS = (
    "partition",
    "offset",
    "IF(timestampType < 0, -1, unix_micros(timestamp)) AS timestamp",
    "key",
    "value",
)
"""The columns of our source out of those of spark-sql-kafka."""

SILENCE = "30000"
"""Milliseconds after which the connector takes brokers that give nothing for gone, as our source
does. Who asks anew then is the runner, which says what it waits for."""


def hold_jars(spark: Any) -> None:
    """Hold that a session has the connector: Spark would name a class, and only once it runs.

    Raises:
        ValueError: it lacks some of it.
    """
    there = spark._jvm.org.apache.spark.util.Utils.classIsLoadable
    if lacking := [jar for jar, name in JARS.items() if not there(name)]:
        raise ValueError(
            f"[engine] kafka 'connector': found no {', '.join(lacking)} in Spark's session, "
            'allowed: jars that [engine.conf] "spark.jars" or "spark.jars.packages" names.'
        )


def connector_options(stream: Stream, at: Mapping[int, int]) -> dict[str, str]:
    """What spark-sql-kafka is told, so that it reads what our own source would.

    ``at`` names every partition that the topic has: the connector refuses to guess
    (https://spark.apache.org/docs/latest/streaming/structured-streaming-kafka-integration.html).

    Raises:
        ValueError: the topic's properties are those of another client.
    """
    leaf = stream.topic
    if leaf.properties:
        allowed = "none with [engine] kafka 'connector': they are librdkafka's, not the JVM's"
        raise wrong(f"Kafka({leaf.topic!r}) properties", leaf.properties, allowed)
    starts = {leaf.topic: {str(number): offset for number, offset in sorted(at.items())}}
    return {
        "kafka.bootstrap.servers": leaf.brokers,
        "subscribe": leaf.topic,
        "startingOffsets": json.dumps(starts),
        "maxOffsetsPerTrigger": str(stream.messages),
        "failOnDataLoss": "true",
        "fetchOffset.numRetries": "1",
        "kafka.default.api.timeout.ms": SILENCE,
        "kafka.isolation.level": "read_committed",
        "kafkaConsumer.pollTimeoutMs": SILENCE,
    }


def told(table: Table) -> Table:
    """The same steps on a topic whose columns are all declared.

    Raises:
        OSError: the topic is to be asked for its columns, and cannot be.
        ValueError: it shows none.
    """
    if isinstance(table, Step):
        return replace(table, source=told(table.source))
    assert isinstance(table, Kafka)
    if table.types or table.format not in ("json", "arrow"):
        return table
    payload = [field for field in table.schema if field.name not in table.places]
    if any(field.shape or field.dtype == "bytes" for field in payload):
        return table  # an Arrow stream says it of itself
    types: Any = {field.name: field.dtype for field in payload}
    return replace(table, types=types)
