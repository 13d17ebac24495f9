"""A server of Spark Connect, started for real: the client has no Java and gets the same digest."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyspark
import pytest

SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"


@pytest.mark.slow
def test_a_table_prepared_at_a_server_has_the_same_digest(tmp_path: Path) -> None:
    home = Path(pyspark.__file__).parent
    environment = {**os.environ, "SPARK_HOME": str(home), "PYSPARK_PYTHON": sys.executable}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.ui.enabled": "false",
    }
    options = [word for key, value in conf.items() for word in ("--conf", f"{key}={value}")]
    command = [home / "bin" / "spark-submit", "--class", SERVER, "--master", "local[2]", *options]
    log = tmp_path / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*command, "spark-internal"], stdout=out, stderr=out, env=environment, cwd=tmp_path
        )
    try:
        _await(port, server, log)
        client = [sys.executable, Path(__file__).with_name("connect_client.py")]
        nowhere = {**os.environ, "JAVA_HOME": "/nowhere"}
        done = subprocess.run(
            [*client, f"sc://127.0.0.1:{port}", tmp_path],
            capture_output=True,
            text=True,
            timeout=600,
            env=nowhere,
        )
        assert done.returncode == 0, done.stderr
        theirs, ours = done.stdout.split()
        assert theirs == ours
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _await(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the server never listened:\n{log.read_text(errors='replace')[-3000:]}")
