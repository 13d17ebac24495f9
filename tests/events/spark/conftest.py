"""A session of Spark for the tests of a module; a process has one at a time."""

from collections.abc import Iterator
from typing import Any

import pytest

from drivetrain.core.site import EngineSite
from drivetrain.core.spark import session

SITE = EngineSite(
    kind="spark",
    master="local[2]",
    memory="1GB",
    conf={
        "spark.sql.shuffle.partitions": "3",
        # a driver of so short a life has no use for the second compiler
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    },
)


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """A session in this process with two threads."""
    with session(SITE) as running:
        yield running


@pytest.fixture(scope="module")
def spark_site() -> EngineSite:
    """The site of that session: who asks for a session of it shares that one."""
    return SITE
