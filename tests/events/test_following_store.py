"""A stream whose tables lie on S3, which may refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from followers import Running, count, held, made, numbers, rows, send

from drivetrain.events.follow.following import follow

INTO, DEAD = "s3://bucket/rows", "s3://bucket/dead"


def test_a_stream_into_s3_goes_on_behind_a_store_that_refused(
    broker: Any, topic: str, bucket: Any, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path, into=INTO, dead=DEAD, partition_by=("s",))
    send(broker, topic, [*numbers(20), b"torn"])
    with Running(stream, tmp_path / "room") as running:
        running.until(count(stream)(20))
        with bucket.being("refusing"):
            send(broker, topic, [*numbers(20, first=20), b"torn too"])
            assert "403" in str(running.ended())
    assert held(stream) == list(range(20))
    refusing = pytest.raises(OSError, match=r"s3://bucket/rows: .*403")
    with bucket.being("refusing"), refusing as refused:
        follow(stream, tmp_path / "room", to_end=True)
    said = json.loads((tmp_path / "room" / "status.json").read_text())
    assert (said["problem"], said["ended"], said["lag"]) == (str(refused.value), True, None)
    follow(stream, tmp_path / "elsewhere", to_end=True)
    assert held(stream) == list(range(40))
    assert sorted(row["value"] for row in rows(DEAD)) == [b"torn", b"torn too"]
