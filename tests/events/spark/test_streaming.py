"""A stream on Spark: what its tables hold beside the embedded runner's, whatever happens."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import followers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from followers import count
from test_telling import Double

import drivetrain as dt
from drivetrain.core.site import EngineSite
from drivetrain.events.follow import following
from drivetrain.events.follow.pace import STATUS
from drivetrain.events.lake.lake import Lake
from drivetrain.events.lake.snapshot import Snapshot
from drivetrain.events.spark.streaming import LostError, SparkFollower, check, follow, raised
from drivetrain.events.table import Table
from drivetrain.events.topic.topic import Topic

TYPES: Any = {"n": "int64", "s": "string", "at": "timestamp"}


def numbers(*which: int) -> list[bytes]:
    rows = [{"n": n, "s": f"{n % 5}", "at": f"2024-01-01T00:{n % 60:02}:00"} for n in which]
    return [json.dumps(row).encode() for row in rows]


def made(broker: Any, topic: str, folder: Path, **changed: Any) -> dt.Stream:
    """A stream of the topic into a table of the folder."""
    leaf = dt.Kafka(topic, servers=broker.servers, types=changed.pop("types", TYPES), time="at")
    events = changed.pop("steps", lambda table: table)(leaf)
    into = {"into": folder / "table", "dead": folder / "dead"} | changed
    return dt.Stream(name="made", events=events, **{"every": "20ms"} | into)


def rows(path: Any, by: str) -> list[dict[str, Any]]:
    snapshot = Snapshot.open(str(path))
    tables = [*snapshot.chunks(snapshot.schema, 100_000)]
    found = pa.concat_tables(tables).to_pylist() if tables else []
    return sorted(found, key=lambda row: row[by])


def held(stream: dt.Stream) -> list[int]:
    return [row["n"] for row in rows(stream.into, "n")]


def cleaned(folder: Path) -> Callable[[Table], Table]:
    """Steps of every kind that a stream may have."""
    names = pa.table({"s": ["0", "1", "2"], "name": ["nil", "one", "two"]})
    pq.write_table(names, folder / "names.parquet")
    rates = pa.table(
        {"at": pa.array([0, 1_704_067_800_000_000], pa.timestamp("us")), "rate": [1, 2]}
    )
    pq.write_table(rates, folder / "rates.parquet")
    return lambda table: (
        table.where(dt.col("n") % 7 != 0)
        .with_columns(half=dt.col("n") / 2, m=dt.col("s").cast("int64"))
        .join(dt.Parquet(folder / "names.parquet"), "s")
        .join_asof(dt.Parquet(folder / "rates.parquet", time="at"), "at")
    )


def test_the_tables_are_those_of_the_embedded_runner(
    spark: Any, spark_site: EngineSite, broker: Any, tmp_path: Path
) -> None:
    topic = broker.topic(3)
    for partition in range(3):
        values = numbers(*range(partition, 900, 3))
        values[5], values[50:50] = b"torn", [None, b'{"n": 1, "s": "six"}', b'{"n": "x"}']
        broker.send(topic, values, partition=partition)
    steps = cleaned(tmp_path)
    folders = [tmp_path / "spark", tmp_path / "embedded"]
    one, two = (
        made(broker, topic, folder, steps=steps, messages=300, partition_by=("name",))
        for folder in folders
    )
    pace = follow(one, tmp_path / "a", spark_site, to_end=True)
    other = following.follow(two, tmp_path / "b", to_end=True)
    assert rows(one.into, "n") == rows(two.into, "n")
    by = "reason"
    key = lambda row: (row["partition"], row["offset"])  # noqa: E731
    assert sorted(rows(one.dead, by), key=key) == sorted(rows(two.dead, by), key=key)
    assert (pace.messages, pace.rows, pace.dead) == (other.messages, other.rows, other.dead)
    assert pace.dead == 12
    assert pace.commits >= 3
    assert [Lake.open(s.into).positions("made") for s in (one, two)] == [
        {f"{topic}/{partition}": 303 for partition in range(3)}
    ] * 2
    said = json.loads((tmp_path / "a" / STATUS).read_text())
    assert (said["positions"], said["ended"]) == ({"0": 303, "1": 303, "2": 303}, True)


@pytest.fixture
def server() -> Iterator[Double]:
    """What a server does that is told of rows."""
    double = Double()
    yield double
    double.close()


def test_a_misfit_ends_it_where_nothing_takes_it_and_what_is_committed_is_told(
    spark: Any, spark_site: EngineSite, broker: Any, tmp_path: Path, server: Double
) -> None:
    topic = broker.topic()
    broker.send(topic, [*numbers(0, 1), b"torn", *numbers(2)])
    stream = made(broker, topic, tmp_path, dead=None)
    with pytest.raises(ValueError, match=rf"^topic '{topic}', partition 0, offset 2: found 'torn'"):
        follow(stream, tmp_path / "room", spark_site, to_end=True)
    assert held(stream) == []
    assert "offset 2" in json.loads((tmp_path / "room" / STATUS).read_text())["problem"]
    lenient = replace(stream, dead=tmp_path / "dead", observe=server.address)
    follow(lenient, tmp_path / "room", spark_site, to_end=True, token="secret")
    assert held(stream) == [0, 1, 2]
    assert [row["n"] for row in server.rows] == [0, 1, 2]
    assert (server.positions, server.tokens) == ({f"{topic}/0": 4}, {"Bearer secret"})


class Running(followers.Running):
    """A stream on Spark in a thread of its own."""

    patience = 300.0
    """Seconds: a session begins slowly on a machine that is busy."""
    follow = staticmethod(follow)


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Starts streams, and ends them."""
    with ExitStack() as started:
        yield lambda *given: started.enter_context(Running(*given))


def test_a_topic_that_is_made_anew_while_it_is_read_ends_the_run(
    spark: Any,
    spark_site: EngineSite,
    broker: Any,
    tmp_path: Path,
    run: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = ["first"]
    monkeypatch.setattr("drivetrain.events.topic.topic.Topic.identity", lambda self: said[0])
    monkeypatch.setattr("drivetrain.events.spark.streaming.REFRESH", 0.05)
    topic = broker.topic()
    stream = made(broker, topic, tmp_path)
    running = run(stream, tmp_path / "room", spark_site)
    broker.send(topic, numbers(0, 1))
    running.until(count(stream)(2))
    said[0] = "second"
    error = running.ended()
    assert isinstance(error, ValueError)
    assert "made anew (its identity is now second)" in str(error)
    assert held(stream) == [0, 1]


def test_a_commit_that_may_have_landed_is_not_tried_again_in_the_same_run(
    spark: Any,
    spark_site: EngineSite,
    broker: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = broker.topic()
    broker.send(topic, numbers(0, 1))
    stream = made(broker, topic, tmp_path)
    plain, silent = Lake.commit_files, [ConnectionError("the store is silent")]

    def commit(self: Lake, *given: Any) -> int:
        version = plain(self, *given)
        if silent:
            raise silent.pop()
        return version

    monkeypatch.setattr(Lake, "commit_files", commit)
    fetched: list[Any] = []
    monkeypatch.setattr(Topic, "assign", lambda self, positions: fetched.append(positions))
    with pytest.raises(OSError, match="the store is silent") as ended:
        follow(stream, tmp_path / "room", spark_site, to_end=True)
    assert type(ended.value) is OSError
    follow(stream, tmp_path / "room", spark_site, to_end=True)
    assert held(stream) == [0, 1], "the next run asks the table"
    assert not fetched, "executors fetch messages, and the driver none"


def test_messages_that_expire_before_they_were_tried_again_end_the_run(
    spark: Any,
    spark_site: EngineSite,
    broker: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = broker.topic()
    broker.send(topic, numbers(0, 1, 2))
    stream = made(broker, topic, tmp_path)

    def land(self: SparkFollower, records: Any) -> None:
        broker.truncate(topic, {0: 2})
        raise LostError("the executor was lost")

    with monkeypatch.context() as lost:
        lost.setattr(SparkFollower, "_land", land)
        with pytest.raises(ValueError, match="found the offset 0, allowed: 2 to 3; its messages"):
            follow(stream, tmp_path / "room", spark_site, to_end=True)
    follow(stream, tmp_path / "room", spark_site, to_end=True, from_start=True)
    assert held(stream) == [2]


@pytest.mark.slow
def test_it_takes_up_new_partitions_and_waits_for_brokers_that_are_gone(
    spark: Any,
    spark_site: EngineSite,
    own_broker: Any,
    tmp_path: Path,
    run: Callable[..., Running],
) -> None:
    topic = own_broker.topic()
    stream = made(own_broker, topic, tmp_path)
    running = run(stream, tmp_path / "room", spark_site)
    own_broker.send(topic, numbers(0, 1, 2))
    running.until(count(stream)(3))
    own_broker.grow(topic, 2)
    own_broker.send(topic, numbers(3, 4), partition=1)
    running.until(count(stream)(5))
    own_broker.grow(topic, 3)  # of which the table knows nothing when they come back
    own_broker.stop()
    running.until(lambda: running.has("waiting for it"))
    own_broker.start()
    own_broker.send(topic, numbers(5), partition=1)
    own_broker.send(topic, numbers(6))
    own_broker.send(topic, numbers(7), partition=2)
    running.until(count(stream)(8))
    running.end()
    assert held(stream) == list(range(8))
    said = json.loads((tmp_path / "room" / STATUS).read_text())
    assert (said["ended"], said["positions"]) == (True, {"0": 4, "1": 3, "2": 1})


def test_of_two_writers_by_mistake_the_second_refuses(
    spark: Any,
    spark_site: EngineSite,
    broker: Any,
    tmp_path: Path,
    run: Callable[..., Running],
) -> None:
    topic = broker.topic()
    stream = made(broker, topic, tmp_path)
    running = run(stream, tmp_path / "one", spark_site)
    broker.send(topic, numbers(0))
    running.until(count(stream)(1))
    with pytest.raises(ValueError, match="found another runner of it"):
        follow(stream, tmp_path / "one", spark_site, to_end=True)
    # On another machine there is no such lock: who comes second to a commit finds out there.
    Lake.open(stream.into).positions("made")
    other = Lake.open(stream.into)
    other.positions("made")
    other.commit_files([], "made", {f"{topic}/0": 1})
    broker.send(topic, numbers(1))
    error = running.ended()
    assert isinstance(error, ValueError)
    assert "another process that appends as 'made'" in str(error)
    assert held(stream) == [0]


# -- without a session -----------------------------------------------------------------------------


def test_what_is_not_done_on_spark_is_refused_by_name() -> None:
    site = EngineSite(kind="spark")
    check(site)
    with pytest.raises(ValueError, match="the driver commits"):
        check(replace(site, master="sc://127.0.0.1:15002"))
    with pytest.raises(ValueError, match="unknown way 'conector'"):
        check(replace(site, kafka="conector"))


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (
            ["Job aborted", "Traceback:", "ValueError: topic 't' is gone", "", "at org."],
            ValueError,
            "topic 't' is gone",
        ),
        (
            ["ValueError: first", "During it", "ConnectionError: b:1 is silent"],
            ConnectionError,
            "b:1 is silent",
        ),
        (["ModuleNotFoundError: No module named 'x'"], ImportError, "No module named 'x'"),
        (["the executor was lost"], LostError, "Spark: the executor was lost"),
        ([""], LostError, "Spark: ended"),
    ],
)
def test_what_python_raised_in_a_process_of_spark_is_raised_here(
    said: Sequence[str], kind: type[Exception], text: str
) -> None:
    error = raised("\n".join(said))
    assert type(error) is kind
    assert str(error) == text
