"""A session of Spark for the tests of a module; a process has one at a time."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from drivetrain.core.site import EngineSite
from drivetrain.core.spark import session

JARS = os.environ.get("DRIVETRAIN_KAFKA_JARS", "")
"""spark-sql-kafka and what it needs, paths with commas between; no package brings them."""

SITE = EngineSite(
    kind="spark",
    master="local[2]",
    memory="1GB",
    conf={
        "spark.sql.shuffle.partitions": "3",
        # a driver of so short a life has no use for the second compiler
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        **({"spark.jars": JARS} if JARS else {}),
    },
)


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """A session in this process with two threads."""
    with session(SITE) as running:
        yield running


@pytest.fixture(scope="module", params=("python", "connector") if JARS else ("python",))
def spark_site(request: pytest.FixtureRequest) -> EngineSite:
    """The site of that session, for each way that can read a topic here; all share the session."""
    return replace(SITE, kafka=request.param)
