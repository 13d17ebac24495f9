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
    """A streaming ``DataFrame`` of the raw records of a stream's topic from given offsets on."""
    if site.kafka == "connector":
        found = spark.readStream.format("kafka").options(**connector_options(stream, at)).load()
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


CONNECTOR_COLUMNS = (
    "partition",
    "offset",
    "IF(timestampType < 0, -1, unix_micros(timestamp)) AS timestamp",
    "key",
    "value",
)
"""The columns of our source out of those of spark-sql-kafka."""


def connector_options(stream: Stream, at: Mapping[int, int]) -> dict[str, str]:
    """What spark-sql-kafka is told, so that it reads what our own source would.

    Its jar was not at hand: these options are what its documentation asks for, and were never run
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
        "kafka.isolation.level": "read_committed",
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
