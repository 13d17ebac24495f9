"""The table of dead letters: each message that does not fit there once, whatever is read again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

import drivetrain as dt
from drivetrain.events.follow.dead import DeadLetters
from drivetrain.events.lake.snapshot import Snapshot
from drivetrain.events.topic.messages import Messages, Reading, Refused
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


def test_a_message_that_only_changed_steps_refuse_is_written_though_the_position_is_behind_it(
    broker: Any, tmp_path: Path
) -> None:
    topic, path = broker.topic(1), tmp_path / "dead"
    broker.send(topic, [b"torn", b'{"n": 1}', b'{"n": 2}', None])
    messages = batch(dt.Kafka(topic, servers=broker.servers, types=TYPES), {0: 4})

    def bury(letters: DeadLetters, *places: int, end: int = 4) -> int:
        refused = [Refused(place, "a step") for place in places]
        return letters.bury(messages, refused, {0: end})

    assert bury(DeadLetters(str(path), "made", Places(topic)), 0, 3) == 2
    letters = DeadLetters(str(path), "made", Places(topic), {0: 0})
    assert bury(letters, 0, 2, end=3) == 1
    assert bury(letters, 0, 1, 2, 3) == 1
    assert bury(DeadLetters(str(path), "made", Places(topic)), 0, 1, 2, 3) == 0
    assert there(path) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    # Made anew under its name, the topic has other messages at these offsets.
    broker.delete(topic)
    broker.topic(1, topic)
    broker.send(topic, [b"torn as well"])
    messages = batch(dt.Kafka(topic, servers=broker.servers, types=TYPES), {0: 1})
    anew = Places(topic).next()
    assert bury(DeadLetters(str(path), "made", anew), end=1) == 0
    assert bury(DeadLetters(str(path), "made", anew), 0, end=1) == 1
    assert bury(DeadLetters(str(path), "made", anew), 0, end=1) == 0
    assert len(there(path)) == 5
