"""A connection to a topic of Kafka: what it holds, and its messages from given offsets on."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.events.kafka import Kafka
from drivetrain.events.topic.messages import Messages

ANSWER = 10.0
"""Seconds in which a broker that is there answers."""

SILENCE = 60.0
"""Seconds without a message after which brokers that are gone are an error to who reads a range."""

LOOK = 0.2
"""Seconds that a wait for messages takes at a time, so that an end that is asked for is heard."""

SLICE = 8_192
"""Messages that are taken from the client at a time."""

IN_FLIGHT = 64 << 20
"""Bytes of messages that the client holds ahead of those that are taken, unless told otherwise."""

_OURS = {
    "bootstrap.servers": "Kafka(servers=…)",
    "enable.auto.commit": "nothing: offsets lie in the table",
    "enable.auto.offset.store": "nothing: offsets lie in the table",
    "auto.offset.reset": "nothing: an offset that is gone is an error",
    "enable.partition.eof": "nothing",
}
"""Properties that are not a file's to set, and what sets them instead."""


class OffsetGoneError(LookupError):
    """A partition does not have the offset that it is to be read from, or no longer.

    Attributes:
        partition: which.
        offset: that was asked for.
    """

    def __init__(self, partition: int, offset: int) -> None:
        super().__init__(partition, offset)
        self.partition, self.offset = partition, offset


Say = Callable[[str], None]
Ended = Callable[[Mapping[int, int]], bool]


class Topic:
    """One topic, as a consumer without a group's assignment reads it.

    Args:
        leaf: the topic as it was declared.
        group: under which monitoring finds the offsets; nobody is assigned anything by it.
        in_flight: bytes that the client fetches ahead at most.
        say: hears that the brokers are gone, and that they are back.

    Raises:
        ImportError: ``confluent-kafka`` is not installed.
        OSError: the file of properties cannot be read.
        ValueError: a property is none, or not the file's to set.
    """

    def __init__(
        self,
        leaf: Kafka,
        *,
        group: str = "drivetrain",
        in_flight: int = IN_FLIGHT,
        say: Say = lambda text: None,
    ) -> None:
        self._kafka = need("confluent_kafka", "kafka")
        self._leaf, self.name, self._say = leaf, leaf.topic, say
        self._gone = False
        self._refusal: str | None = None
        self.ends: dict[int, int] = {}
        self.added: set[int] = set()
        given = _properties(leaf.properties)
        settings = {
            "bootstrap.servers": leaf.brokers,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "allow.auto.create.topics": False,
            "queued.max.messages.kbytes": max(in_flight // 1024, 1024),
            "max.poll.interval.ms": 86_400_000,  # a commit may take long: nobody else would read
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 5_000,
            "topic.metadata.refresh.interval.ms": 30_000,
            "log_level": 0,
            "logger": logging.getLogger("drivetrain.kafka"),
            **given,
            "error_cb": self._hear,
        }
        try:
            self._consumer = self._kafka.Consumer(settings)
        except (self._kafka.KafkaException, TypeError, ValueError) as error:
            where = leaf.properties or f"Kafka({leaf.topic!r})"
            raise wrong(where, _text(error), "properties that librdkafka has") from None
        self._admin: Any = None
        self._settings = {k: v for k, v in given.items() if k != "group.id"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the brokers."""
        self._consumer.close()

    # -- what it holds -----------------------------------------------------------------------------

    def partitions(self) -> list[int]:
        """The numbers of its partitions.

        Raises:
            ConnectionError: no broker answers.
            FileNotFoundError: there is no such topic.
            PermissionError: it may not be read.
        """
        found = self._asked(lambda: self._consumer.list_topics(self.name, ANSWER))
        topic = found.topics.get(self.name)
        error = topic.error if topic is not None else None
        if topic is None or (error is not None and error.code() in self._absent):
            raise FileNotFoundError(f"topic {self.name!r}: {self._leaf.brokers} has no such topic")
        if error is not None:
            raise self._error(error)
        return sorted(topic.partitions)

    def bounds(self, partition: int) -> tuple[int, int]:
        """The oldest offset of a partition, and the one behind its newest message."""
        place = self._kafka.TopicPartition(self.name, partition)
        low, high = self._asked(lambda: self._consumer.get_watermark_offsets(place, ANSWER))
        return int(low), int(high)

    def since(self, partitions: list[int], time_us: int) -> dict[int, int]:
        """The first offset of each partition from a time on; its end where there is none."""
        asked = [self._kafka.TopicPartition(self.name, n, time_us // 1000) for n in partitions]
        found = self._asked(lambda: self._consumer.offsets_for_times(asked, ANSWER))
        return {
            place.partition: place.offset if place.offset >= 0 else self.bounds(place.partition)[1]
            for place in found
        }

    def starts(self, partitions: list[int]) -> dict[int, int]:
        """Where the declaration has each partition begin."""
        if self._leaf.since_us is not None:
            return self.since(partitions, self._leaf.since_us)
        named = self._leaf.first_offsets
        return {n: max(named.get(n, 0), self.bounds(n)[0]) for n in partitions}

    def identity(self) -> str:
        """What the brokers call this very topic; empty where they have no word for it."""
        if self._admin is None:
            settings = {"bootstrap.servers": self._leaf.brokers, "log_level": 0, **self._settings}
            self._admin = need("confluent_kafka.admin", "kafka").AdminClient(settings)
        try:
            names = self._kafka.TopicCollection([self.name])
            asked = self._admin.describe_topics(names, request_timeout=ANSWER)
            found = asked[self.name].result(ANSWER)
        except (self._kafka.KafkaException, TimeoutError):  # older brokers do not tell
            return ""
        told = str(getattr(found, "topic_id", "") or "")
        return "" if set(told) <= set("A=") else told  # all zeros: no word

    # -- its messages ------------------------------------------------------------------------------

    def assign(self, positions: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on, and no others."""
        self.ends = {}
        self._consumer.assign(
            [self._kafka.TopicPartition(self.name, n, at) for n, at in positions.items()]
        )

    def add(self, positions: Mapping[int, int]) -> None:
        """Read further partitions too."""
        self.added |= positions.keys()
        self._consumer.incremental_assign(
            [self._kafka.TopicPartition(self.name, n, at) for n, at in positions.items()]
        )

    def take(
        self,
        most: int,
        size: int,
        seconds: float,
        *,
        ended: Ended = lambda behind: False,
    ) -> Messages:
        """The next messages, once there is one within ``LOOK`` seconds.

        Args:
            most: messages.
            size: bytes of values, passed by those of a slice at most.
            seconds: after the first one it is waited for others.
            ended: told the last offset of each partition so far, whether that is enough.

        Raises:
            ConnectionError: the client is lost for good.
            FileNotFoundError: the topic is no longer there.
            OffsetGoneError: a partition's offset is not there.
            PermissionError: it may not be read, or the brokers refuse who we are.
        """
        raw: list[Any] = []
        values: list[bytes | None] = []
        behind: dict[int, int] = {}
        held, until = 0, 0.0
        while len(raw) < most and held < size:
            pause = until - time.monotonic() if raw else LOOK
            if pause <= 0 or (raw and ended(behind)):
                break
            want = min(most - len(raw), SLICE) if raw else 1
            found = self._consumer.consume(want, min(pause, LOOK))
            if self._refusal is not None:
                raise PermissionError(f"topic {self.name!r}: {self._refusal}")
            good = [message for message in found if message.error() is None]
            if len(good) < len(found):
                self._faults([message for message in found if message.error() is not None])
            if not raw:
                if not good:
                    break
                until = time.monotonic() + seconds
            if good and self._gone:
                self._gone = False
                self._say(f"{self._leaf.brokers} answers again")
            behind.update({m.partition(): m.offset() for m in good})
            new = [message.value() for message in good]
            held += sum(map(len, filter(None, new)))
            raw += good
            values += new
        past = {partition: at + 1 for partition, at in behind.items()}
        return Messages(raw, values, past, held, dict(self.ends))

    def within(self, partition: int, start: int, end: int, most: int) -> Iterator[Messages]:
        """The messages of a partition between two offsets, a bounded number at a time.

        Raises:
            ConnectionError: the brokers are gone, and stay so for ``SILENCE`` seconds.
            FileNotFoundError: as for :meth:`take`; so are ``PermissionError`` and others.
            ValueError: an offset between is not there.
        """
        if start >= end:
            return

        def there(behind: Mapping[int, int]) -> bool:
            return max(behind.get(partition, -1) + 1, self.ends.get(partition, -1)) >= end

        self.assign({partition: start})
        heard = time.monotonic()
        while start < end:
            try:
                taken = self.take(min(most, end - start), IN_FLIGHT, ANSWER, ended=there)
            except OffsetGoneError:
                low, high = self.bounds(partition)
                raise self.absent(partition, start, low, high) from None
            start = taken.behind.get(partition, start)
            inside = taken if start <= end else taken.before(partition, end)
            if inside:
                yield inside
            if not taken and self.ends.get(partition, -1) >= end:
                return  # what lies between is no message: marks of transactions, or compacted away
            if taken or not self._gone:
                heard = time.monotonic()
            elif time.monotonic() - heard >= SILENCE:
                text = f"found no answer for {SILENCE:.0f} seconds"
                raise ConnectionError(f"topic {self.name!r} at {self._leaf.brokers}: {text}")

    def absent(self, partition: int, found: int, low: int, high: int) -> ValueError:
        """The error for an offset that a partition does not have, or no longer."""
        why = "its messages were deleted or expired" if found < low else "it was made anew"
        return ValueError(
            f"topic {self.name!r}, partition {partition}: found the offset {found}, allowed: "
            f"{low} to {high}; {why} since."
        )

    def lag(self, positions: Mapping[int, int]) -> dict[int, int]:
        """How many offsets of each partition lie behind a position, as far as is known."""
        found: dict[int, int] = {}
        for partition, at in positions.items():
            place = self._kafka.TopicPartition(self.name, partition)
            try:
                high = self._consumer.get_watermark_offsets(place, cached=True)[1]
            except self._kafka.KafkaException:
                continue
            if high >= 0:
                marks = self.ends.get(partition) == high  # only marks of transactions are left
                found[partition] = 0 if marks else max(high - at, 0)
        return found

    def tell(self, positions: Mapping[int, int]) -> None:
        """Let monitoring see the positions in the group; nothing hangs on it."""
        places = [self._kafka.TopicPartition(self.name, n, at) for n, at in positions.items()]
        try:
            self._consumer.commit(offsets=places, asynchronous=True)
        except self._kafka.KafkaException as error:
            logging.getLogger(__name__).debug("offsets not shown in the group: %s", error)

    # -- what goes wrong ---------------------------------------------------------------------------

    @property
    def _absent(self) -> tuple[int, ...]:
        codes = self._kafka.KafkaError
        return (
            codes.UNKNOWN_TOPIC_OR_PART,
            codes._UNKNOWN_TOPIC,
            codes._UNKNOWN_PARTITION,
        )

    def _faults(self, messages: list[Any]) -> None:
        codes = self._kafka.KafkaError
        for message in messages:
            error = message.error()
            if error.code() == codes._PARTITION_EOF:
                self.ends[message.partition()] = message.offset()
            elif error.code() in (codes._AUTO_OFFSET_RESET, codes.OFFSET_OUT_OF_RANGE):
                raise OffsetGoneError(message.partition(), message.offset())
            elif error.code() in self._absent:
                with suppress(ConnectionError):  # it is waited for like any broker that is gone
                    self.partitions()  # raises if it is so; else it moved to another broker
            elif not error.retriable() and error.code() not in (
                codes._TRANSPORT,
                codes._ALL_BROKERS_DOWN,
                codes._TIMED_OUT,
            ):
                raise self._error(error)

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except self._kafka.KafkaException as error:
            raise self._error(error.args[0]) from None

    def _error(self, error: Any) -> OSError:
        codes = self._kafka.KafkaError
        denied = (
            codes.TOPIC_AUTHORIZATION_FAILED,
            codes.GROUP_AUTHORIZATION_FAILED,
            codes.CLUSTER_AUTHORIZATION_FAILED,
            codes._AUTHENTICATION,
            codes.SASL_AUTHENTICATION_FAILED,
        )
        text = f"topic {self.name!r} at {self._leaf.brokers}: {_text(error)}"
        if error.code() in denied:
            return PermissionError(text)
        return FileNotFoundError(text) if error.code() in self._absent else ConnectionError(text)

    def _hear(self, error: Any) -> None:
        """What the client's own threads have to say; it tries again by itself."""
        codes = self._kafka.KafkaError
        if error.code() in (codes._AUTHENTICATION, codes.SASL_AUTHENTICATION_FAILED):
            self._refusal = _text(error)
        elif error.code() in (codes._ALL_BROKERS_DOWN, codes._TRANSPORT) and not self._gone:
            self._gone = True
            self._say(f"{self._leaf.brokers} does not answer: waiting for it ({_text(error)})")


def _text(error: Any) -> str:
    """What the client calls an error."""
    held: Any = error.args[0] if isinstance(error, Exception) and error.args else error
    return held.str() if hasattr(held, "str") else str(held)


def _properties(path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(Path(path).read_text().splitlines() if path else (), start=1):
        if not line.strip() or line.lstrip().startswith(("#", "!")):
            continue
        key, equals, value = line.partition("=")
        key = key.strip()
        if not equals or not key:
            raise wrong(f"{path}, line {number}", key, "key=value")
        if key in _OURS:
            raise wrong(f"{path}, line {number}", key, f"other properties; {_OURS[key]} sets it")
        found[key] = value.strip()
    return found
