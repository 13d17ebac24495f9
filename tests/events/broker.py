"""A Kafka broker for tests: noida-db on loopback, with its data in a folder."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

SECONDS = 60.0
"""How long a broker may take to answer, on a machine that does other things too."""


class Broker:
    """One broker, which a test may stop and start again; its messages stay.

    It keeps what it acknowledged only when it is asked to end, so it is never killed.

    Attributes:
        servers: its address, the same after every start.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.servers = f"127.0.0.1:{self._port}"
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = 0
        self._admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [str(_binary()), "start", "--only", "kafka"]
        command += ["--data-dir", str(self._folder), "--kafka-port", str(self._port)]
        with open(self._folder.with_suffix(".log"), "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self._admin.list_topics(timeout=1)
                return
            except KafkaException:
                assert self._process.poll() is None, self._folder.with_suffix(".log").read_text()
                assert time.monotonic() < deadline, "the broker does not answer"

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(signal.SIGTERM)
            process.wait(SECONDS)

    def topic(self, partitions: int = 1, name: str | None = None) -> str:
        """Make a topic, under a name of its own unless one is given; its name."""
        self._numbers += 1
        name = name or f"topic-{self._numbers}"
        made = self._admin.create_topics([NewTopic(name, partitions, 1)])
        made[name].result(SECONDS)
        return name

    def grow(self, topic: str, partitions: int) -> None:
        """Give a topic so many partitions in all."""
        made = self._admin.create_partitions([NewPartitions(topic, partitions)])
        made[topic].result(SECONDS)

    def delete(self, topic: str) -> None:
        """Delete a topic."""
        self._admin.delete_topics([topic])[topic].result(SECONDS)

    def truncate(self, topic: str, before: Mapping[int, int]) -> None:
        """Delete the messages of partitions before an offset, as their age would."""
        places = [TopicPartition(topic, number, offset) for number, offset in before.items()]
        for done in self._admin.delete_records(places).values():
            done.result(SECONDS)

    def send(
        self,
        topic: str,
        values: Iterable[bytes | None],
        *,
        partition: int = 0,
        key: bytes | None = None,
        timestamp: int = 0,
    ) -> None:
        """Append messages to a partition, and wait until they lie there.

        Args:
            topic: which.
            values: of the messages.
            partition: which.
            key: of all of them.
            timestamp: of all of them in milliseconds since 1970; 0 is now.
        """
        producer = Producer({"bootstrap.servers": self.servers, "linger.ms": 5})
        failed: list[object] = []

        def delivered(error: object, message: object) -> None:
            if error is not None:
                failed.append(error)

        for value in values:
            while True:
                try:
                    producer.produce(
                        topic,
                        value,
                        key,
                        partition=partition,
                        timestamp=timestamp,
                        on_delivery=delivered,
                    )
                    break
                except BufferError:
                    producer.poll(1)
            producer.poll(0)
        assert not producer.flush(SECONDS), "the broker does not take messages"
        assert not failed, failed[0]


def _binary() -> Path:
    """The broker itself: a signal to the script before it would leave it behind."""
    spec = find_spec("noida_db")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("noida-db")
