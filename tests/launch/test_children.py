"""Processes on this machine: whose fault an end was, and that none is left."""

import signal
import sys
import textwrap
from pathlib import Path

import pytest

from drivetrain.core.job import LOST
from drivetrain.launch.children import Children


def children(code: str, *roles: str, grace: float = 20.0) -> Children:
    command = (sys.executable, "-c", textwrap.dedent(code))
    return Children(command, [{"ROLE": role} for role in roles], grace)


ROLES = """
    import os, pathlib, signal, sys, time
    role = os.environ["ROLE"]
    if role.isdigit():
        sys.exit(int(role))
    if role == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if role.startswith("-"):
        os.kill(os.getpid(), int(role[1:]))
    if role == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if role.startswith("/"):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        pathlib.Path(role).write_text("heeds")
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (("0", "0"), (0, 0)),
        (("75", "-9", "75"), (1, -9)),
        (("-9", "75", "2"), (2, 2)),
        (("-6", "-9"), (1, -9)),  # a library aborted over the loss of the other
        (("75", "waits"), (0, LOST)),  # whoever we ended is not to blame
    ],
)
def test_the_fault_is_that_of_the_one_that_the_others_lost(
    monkeypatch: pytest.MonkeyPatch, roles: tuple[str, ...], expected: tuple[int, int]
) -> None:
    seconds = 1.0 if "waits" in roles else 20.0  # all the others end by themselves, if slowly
    monkeypatch.setattr("drivetrain.launch.children.LOSS_SECONDS", seconds)
    with children(ROLES, *roles) as started:
        assert started.wait() == expected
        assert started.late == [at for at, role in enumerate(roles) if role == "waits"]
        assert all(process.returncode is not None for process in started.processes)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells that a child is stopped")
def test_one_that_a_signal_has_stopped_is_not_waited_for_and_hears_that_it_shall_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("drivetrain.launch.children.LOSS_SECONDS", 60.0)
    with children(ROLES, "75", "stopped", grace=60.0) as started:
        assert started.wait() == (0, LOST)
        assert started.late == [1]
        assert started.processes[1].returncode == -signal.SIGTERM  # and not, after that, SIGKILL


def test_one_that_ended_as_it_was_asked_to_is_blamed_last(tmp_path: Path) -> None:
    heeding = tmp_path / "heeding"
    with children(ROLES, "waits", str(heeding)) as started:
        while not heeding.exists():
            assert started.outcome() is None
        started.send(signal.SIGTERM)
        assert started.wait() == (1, LOST)
        assert started.processes[0].returncode == -signal.SIGTERM


def test_none_is_left_behind_a_block_that_fails() -> None:
    started = children(ROLES, "waits", "deaf", grace=0.2)
    with pytest.raises(KeyError), started:
        raise KeyError
    assert {process.returncode for process in started.processes} <= {-15, -9}
