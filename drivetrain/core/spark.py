"""Sessions of Spark: in this process, on a standalone cluster, or at a server of Spark Connect."""

import os
import re
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

from drivetrain.core.cores import cores
from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.core.site import EngineSite

MEANING: Mapping[str, str] = {
    "spark.sql.ansi.enabled": "true",
    "spark.sql.ansi.doubleQuotedIdentifiers": "true",
    "spark.sql.caseSensitive": "true",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.timestampType": "TIMESTAMP_NTZ",
    "spark.sql.variable.substitute": "false",
    "spark.sql.legacy.consecutiveStringLiterals.enabled": "false",
}
"""What decides the meaning of SQL: an overflow is an error, ``"a"`` and ``"A"`` are two columns,
``TIMESTAMP`` has no zone, and text is only text. A site cannot change it."""

DEFAULTS: Mapping[str, str] = {
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "65536",
}
"""What a site may change, in every kind of session."""

FORKING = "drivetrain.forking"
"""The module from whose process Python workers are forked."""

_OWN: Mapping[str, str] = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.python.daemon.module": FORKING,
    # else the JVM's client of Kafka closes only once brokers that are gone are back
    "spark.sql.streaming.stopTimeout": "10s",
}
"""What a site may change where this process starts the driver."""

_DEPRECATED = "spark.sql.parser.escapedStringLiterals"
"""Decides meaning too, but to set it, even to what it is, makes Spark warn."""

_LOG = """\
rootLogger.level = error
logger.gateway.name = org.apache.spark.api.python.PythonGatewayServer
logger.gateway.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{yyyy-MM-dd HH:mm:ss} %p %c{1}: %m%n%ex
"""
_PANDAS = "PySpark does not yet fully support pandas"
"""A warning at every function over Arrow; rows go through no pandas here."""
_JAVA_OPTIONS = "spark.driver.extraJavaOptions"
_LEAST_MEMORY = 512
_MASTER = re.compile(r"local(\[(\d+|\*)\])?|spark://[^/,:]+:\d+(,[^/,:]+:\d+)*|sc://[^/:]+:\d+.*")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass
class _Open:
    """The session that this process has, which all who ask for it share."""

    asked: tuple[object, ...]
    spark: Any
    scratch: "tempfile.TemporaryDirectory[str]"
    users: int = 0


_lock = RLock()
_open: _Open | None = None
_lingering = 0


@contextmanager
def session(site: EngineSite) -> Generator[Any]:
    """A ``SparkSession`` as a site asks for it; one that is open in this process is shared.

    The last one who leaves ends it: its driver, its JVM and its scratch directory are then gone.
    Times are in UTC, SQL is ANSI's, Arrow carries rows between Spark and Python.

    Args:
        site: ``master`` is ``local`` (as many threads as ``threads`` says), ``local[n]``,
            ``spark://host:port`` or ``sc://host:port``.

    Raises:
        ImportError: pyspark is not installed.
        FileNotFoundError: this machine has no Java, and the driver would run here.
        ConnectionError: nobody answers at the master's address, or no worker takes the job within
            ``wait_seconds``.
        ValueError: the master is none of these, the site's ``conf`` would change what values mean,
            or this process has a session of another site open.
    """
    global _open
    asked = (site.master, site.memory, site.threads, tuple(sorted(site.conf.items())))
    with _lock:
        if _open is None:
            _open = _start(site, asked)
        elif _open.asked != asked:
            allowed = "the one that this process has open; end it first"
            raise wrong("a session of Spark", f"another one, at {site.master}", allowed)
        mine = _open
        mine.users += 1
    try:
        yield mine.spark
    finally:
        _leave(mine)


@contextmanager
def lingering() -> Generator[None]:
    """While the block runs, a session that was opened stays open for who asks next."""
    global _lingering
    with _lock:
        _lingering += 1
    try:
        yield
    finally:
        with _lock:
            _lingering -= 1
            if _open is not None:
                _open.users += 1
                _leave(_open)


def _leave(mine: _Open) -> None:
    global _open
    with _lock:
        mine.users -= 1
        if not mine.users and not _lingering and mine is _open:
            _open = None
            _stop(mine)


@contextmanager
def told() -> Generator[None]:
    """Spark's errors as Python's own: what Python raised on an executor, else what SQL says.

    Raises:
        ValueError: a value that a step cannot compute with, or what an executor found wrong.
        OSError, MemoryError: of an executor.
    """
    errors = need("pyspark.errors", "spark")
    try:
        yield
    except errors.PythonException as error:
        raised = _RAISED.findall(str(error))
        name, text = raised[-1] if raised else ("", str(error))
        raise _KNOWN.get(name, ValueError)(text) from error
    except errors.PySparkException as error:
        raise ValueError(f"Spark: {str(error).splitlines()[0]}") from error


_RAISED = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception)): (.*)$", re.MULTILINE)
_KNOWN: Mapping[str, type[Exception]] = {
    error.__name__: error
    for error in (OSError, FileNotFoundError, PermissionError, MemoryError, AssertionError)
}


def _start(site: EngineSite, asked: tuple[object, ...]) -> _Open:
    if not _MASTER.fullmatch(site.master):
        allowed = "local, local[n], spark://host:port or sc://host:port"
        raise wrong("[engine] master", site.master, allowed)
    for key in site.conf:
        if key in MEANING or key == _DEPRECATED:
            allowed = "keys that do not decide what values mean"
            raise wrong("[engine] conf", key, allowed)
    sql = need("pyspark.sql", "spark")
    warnings.filterwarnings("ignore", _PANDAS, FutureWarning)
    scratch = tempfile.TemporaryDirectory(prefix="drivetrain-spark-")
    try:
        spark = _remote(sql, site) if site.master.startswith("sc://") else None
        spark = spark or _driver(sql, site, Path(scratch.name))
    except BaseException:
        scratch.cleanup()
        raise
    return _Open(asked, spark, scratch)


def _stop(opened: _Open) -> None:
    try:
        opened.spark.stop()
        if not str(opened.asked[0]).startswith("sc://"):
            _end_driver()
    finally:
        opened.scratch.cleanup()


# -- Spark Connect ---------------------------------------------------------------------------------


def _remote(sql: Any, site: EngineSite) -> Any:
    need("pyspark.sql.connect.session", "spark")
    _answers(site, [site.master.removeprefix("sc://").partition("/")[0].partition(";")[0]])
    spark = sql.SparkSession.builder.remote(site.master).create()
    for key, value in {**DEFAULTS, **site.conf, **MEANING}.items():
        spark.conf.set(key, value)
    return spark


def _answers(site: EngineSite, addresses: list[str]) -> None:
    """See that somebody listens, before Spark would try for minutes."""
    reason = OSError("no address")
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=min(5.0, site.wait_seconds)):
                return
        except OSError as error:
            reason = error
    raise ConnectionError(
        f"[engine] master {site.master}: nobody answers there ({reason}); start it, or mend the "
        "address in the site."
    )


# -- a driver of this process ----------------------------------------------------------------------


def _driver(sql: Any, site: EngineSite, scratch: Path) -> Any:
    _java()
    cluster = site.master.startswith("spark://")
    addresses = site.master.removeprefix("spark://").split(",") if cluster else []
    if cluster:
        _answers(site, addresses)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    placed = _placed(site, addresses, scratch)
    conf = {**DEFAULTS, **_OWN, **placed, **site.conf, **MEANING}
    conf[_JAVA_OPTIONS] = placed[_JAVA_OPTIONS]
    builder = sql.SparkSession.builder.appName("drivetrain").master(_master(site))
    for key, value in conf.items():
        builder = builder.config(key, value)
    try:
        spark = builder.getOrCreate()
    except BaseException:
        _end_driver()
        raise
    if cluster:
        try:
            _await_worker(spark, site)
        except BaseException:
            spark.stop()
            _end_driver()
            raise
    return spark


def _master(site: EngineSite) -> str:
    return f"local[{site.threads or cores()}]" if site.master == "local" else site.master


def _placed(site: EngineSite, addresses: list[str], scratch: Path) -> dict[str, str]:
    """What follows from where the session runs."""
    log = scratch / "log4j2.properties"
    log.write_text(_LOG)
    conf = {
        "spark.local.dir": str(scratch),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        _JAVA_OPTIONS: f"-Dlog4j2.configurationFile={log.as_uri()} "
        + site.conf.get(_JAVA_OPTIONS, ""),
    }
    memory = f"{max(_LEAST_MEMORY, _mebibytes(site.memory))}m"
    if not addresses:
        conf["spark.driver.memory"] = memory
    else:
        conf["spark.executor.memory"] = memory
    if all(address.startswith(("127.", "localhost")) for address in addresses):
        conf["spark.driver.host"] = conf["spark.driver.bindAddress"] = "127.0.0.1"
    return conf


def _mebibytes(memory: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", memory.upper())
    if match is None:
        raise wrong("[engine] memory", memory, "an amount such as '1GB'")
    return int(float(match[1]) * _UNITS[match[2]]) >> 20


def _java() -> None:
    """See that there is a Java, before Spark would only say that its gateway has gone."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        where = f"in JAVA_HOME={home}" if home else "in PATH"
        raise FileNotFoundError(
            f"Spark needs Java 17 or later, and none is {where}; on Debian: "
            "apt install openjdk-17-jre-headless"
        )


def _await_worker(spark: Any, site: EngineSite) -> None:
    """Wait until a worker of the cluster has given this driver an executor."""
    executors = spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos
    deadline = time.monotonic() + site.wait_seconds
    while len(executors()) < 2:  # the driver itself is the first
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"[engine] master {site.master}: no worker gave an executor with "
                f"{site.memory} of memory within {site.wait_seconds:g} s; start workers, free "
                "them, or ask for less memory."
            )
        time.sleep(0.1)


def _end_driver() -> None:
    """End the JVM, which Spark itself leaves to the end of the process."""
    context = need("pyspark", "spark").SparkContext
    gateway, context._gateway, context._jvm = context._gateway, None, None
    if gateway is None:
        return
    process = getattr(gateway, "proc", None)
    gateway.shutdown()
    if process is not None:
        if process.stdin is not None:
            process.stdin.close()  # which the JVM takes as its end
        process.wait()
