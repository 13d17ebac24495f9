"""The table of dead letters: each message that does not fit there once, whatever is read again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

import drivetrain as dt
from drivetrain.events.follow.dead import DeadLetters
from drivetrain.events.lake.snapshot import Snapshot
from drivetrain.events.topic.messages import Messages, Reading
from drivetrain.events.topic.places import Places
from drivetrain.events.topic.topic import Topic

TYPES: Any = {"n": "int64"}


def batch(leaf: dt.Kafka, ends: Mapping[int, int]) -> Messages:
    """The messages of partitions up to an offset."""
    raw: list[Any] = []
    with Topic(leaf) as source:
        for partition, end in ends.items():
            for messages in source.within(partition, 0, end, 100):
                raw += messages.raw
    return Messages(raw, [message.value() for message in raw], ends)


def there(path: Path) -> list[tuple[int, int]]:
    """The partitions and offsets of all dead letters."""
    snapshot = Snapshot.open(str(path))
    table = pa.concat_tables(snapshot.chunks(snapshot.schema, 1_000))
    return sorted((row["partition"], row["offset"]) for row in table.to_pylist())


def test_a_batch_that_is_read_again_with_other_borders_writes_only_new_dead_letters(
    broker: Any, tmp_path: Path
) -> None:
    topic, path = broker.topic(2), tmp_path / "dead"
    broker.send(topic, [b"torn 0", b'{"n": 1}', b"torn 2", b"torn 3"], partition=0)
    broker.send(topic, [b"torn 0", b"torn 1"], partition=1)
    leaf = dt.Kafka(topic, servers=broker.servers, types=TYPES)
    reading = Reading(leaf, leaf.schema)

    def bury(letters: DeadLetters, ends: dict[int, int]) -> int:
        messages = batch(leaf, ends)
        return letters.bury(messages, reading(messages).refused, ends)

    assert bury(DeadLetters(str(path), "made", Places(topic)), {0: 3}) == 2
    letters = DeadLetters(str(path), "made", Places(topic))
    assert bury(letters, {0: 1, 1: 1}) == 1, "partition 0 ends before what is there"
    assert bury(letters, {0: 4, 1: 2}) == 2
    assert there(path) == [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1)]
