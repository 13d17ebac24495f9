"""What the tests of the verbs share: verbs in this process or one of their own, and a site."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from drivetrain.cli import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
Drive = Callable[..., tuple[int, str, str]]
Child = Callable[..., "subprocess.CompletedProcess[str]"]
Served = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def drive(capsys: pytest.CaptureFixture[str]) -> Drive:
    """``drive(*arguments)`` runs a verb in this process: its status, its output, its errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def here(ran: Any, tmp_path: Path) -> tuple[str, ...]:
    """Arguments that put a verb on a site of the test's own, which has the made bundle."""
    site = ran.copy(tmp_path)
    file = tmp_path / "site.toml"
    file.write_text(
        f'store = "{site.store}"\nwork = "{site.work}"\ndevice = "cpu"\n'
        f'[engine]\nmemory = "{site.engine.memory}"\nthreads = 1\n'
        f'[serve]\nport = 0\nfeedback = "{tmp_path / "feedback"}"\n'
    )
    return ("--on", str(file))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "drivetrain.cli", *map(str, arguments)]


@pytest.fixture
def child() -> Child:
    """``child(*arguments)`` runs a verb in a process of its own."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, check=False
        )

    return run


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """``served(reference, *arguments)``: a server in a process of its own; its address."""

    @contextmanager
    def serve(reference: str, *arguments: object) -> Iterator[str]:
        said = tmp_path / "server.err"
        with said.open("w") as errors:
            process = subprocess.Popen(
                command("serve", reference, *arguments),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=ENVIRONMENT,
            )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line + said.read_text()
            yield found[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.communicate()

    return serve
