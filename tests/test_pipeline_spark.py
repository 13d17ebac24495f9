"""A system on Spark becomes the bundle that it becomes on DuckDB."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivetrain.cli import main
from drivetrain.core.site import EngineSite
from drivetrain.core.spark import session
from drivetrain.pipeline import run
from drivetrain.registry.registry import Registry

SHORT = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""Java that lives for seconds has no use for the second compiler."""

CONF = {
    "spark.sql.shuffle.partitions": "3",
    "spark.driver.extraJavaOptions": SHORT,
}


def test_a_run_on_two_threads_of_spark_gives_the_same_bundle(ran: Any, tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    lines = [
        *(f'store = "{tmp_path}/store"', f'work = "{tmp_path}/work"', 'device = "cpu"'),
        *("[engine]", 'kind = "spark"', 'master = "local[2]"', "[engine.conf]"),
        *(f'"{key}" = "{value}"' for key, value in CONF.items()),
    ]
    site.write_text("\n".join(lines))
    assert main(["run", str(ran.file), "--on", str(site)]) == 0
    assert Registry(tmp_path / "store").bundles() == (ran.bundle.digest,)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A standalone cluster on loopback: one master, two workers."""
    import pyspark

    home = Path(pyspark.__file__).parent
    environment = {**os.environ, "SPARK_HOME": str(home), "PYSPARK_PYTHON": sys.executable}
    environment |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m"}
    environment["SPARK_DAEMON_JAVA_OPTS"] = SHORT
    started: list[subprocess.Popen[bytes]] = []
    logs = tmp_path / "logs"
    logs.mkdir()

    def start(name: str, *arguments: str) -> Path:
        log = logs / name
        command = [str(home / "bin" / "spark-class"), *arguments]
        with log.open("wb") as out:
            started.append(
                subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=logs)
            )
        return log

    try:
        place = "org.apache.spark.deploy"
        loopback = ("--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
        log = start("master", f"{place}.master.Master", *loopback)
        address = _said(log, started[0], r"Starting Spark master at (spark://\S+)")
        for i in range(2):
            size = ("--cores", "1", "--memory", "1g", "--work-dir", str(logs / f"work-{i}"))
            start(f"worker-{i}", f"{place}.worker.Worker", *loopback, *size, address)
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(60)


def _said(log: Path, process: "subprocess.Popen[bytes]", pattern: str) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if match := re.search(pattern, log.read_text(errors="replace")):
            return match[1]
        time.sleep(0.2)
    pytest.fail(f"it never said {pattern!r}:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.mark.slow
def test_a_run_on_a_cluster_of_two_workers_gives_the_same_bundle(
    ran: Any, tmp_path: Path, cluster: str
) -> None:
    conf = {
        **CONF,
        "spark.executor.cores": "1",
        "spark.executor.extraJavaOptions": SHORT,
    }
    engine = EngineSite(kind="spark", master=cluster, memory="512MB", conf=conf, wait_seconds=180.0)
    site = replace(ran.site, store=f"{tmp_path}/store", work=f"{tmp_path}/work", engine=engine)
    bundle = run(ran.system, site)
    assert bundle is not None
    assert bundle.digest == ran.bundle.digest
    memory = replace(engine, memory="64GB", wait_seconds=1.0)
    with pytest.raises(ConnectionError, match="no worker gave an executor"), session(memory):
        pass


@pytest.mark.parametrize(
    ("engine", "error", "message"),
    [
        ({"master": "spark://127.0.0.1:1"}, ConnectionError, "nobody answers there"),
        ({"master": "sc://127.0.0.1:1"}, ConnectionError, "nobody answers there"),
        ({"master": "yarn"}, ValueError, "local, local.n., spark://host:port or sc://host:port"),
        ({"conf": {"spark.sql.ansi.enabled": "false"}}, ValueError, "what values mean"),
    ],
)
def test_a_site_that_cannot_be_is_an_error_at_once(engine: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message), session(EngineSite(kind="spark", **engine)):
        pass


def test_without_java_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(FileNotFoundError, match="Spark needs Java 17"), session(EngineSite()):
        pass
