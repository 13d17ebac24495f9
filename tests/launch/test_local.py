"""The local launcher: what it would start, what it starts, and that nothing outlives it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from drivetrain.core.job import Job, Resources
from drivetrain.launch.local import Local


def job(code: str, processes: int = 1, cpus: int = 0, **environment: str) -> Job:
    resources = Resources(processes=processes, cpus=cpus)
    command = (sys.executable, "-c", textwrap.dedent(code))
    return Job(name="job", command=command, environment=environment, resources=resources)


def test_rendering_shows_every_process_with_its_rank_and_starts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "started"
    text = Local().render(job(f"open({str(path)!r}, 'w')", processes=2, cpus=3, NAME="a b"))
    first, second = text.splitlines()
    assert first.startswith("NAME='a b' OMP_NUM_THREADS=3 RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 ")
    assert " RANK=1 " in second
    assert not path.exists()


def test_each_process_finds_its_place_in_the_environment(tmp_path: Path) -> None:
    code = f"""
        import os, pathlib
        pathlib.Path({str(tmp_path)!r}, os.environ["RANK"]).write_text(os.environ["WORLD_SIZE"])
    """
    assert Local().start(job(code, processes=3)) == 0
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"0": "3", "1": "3", "2": "3"}


def test_one_failure_ends_the_others_and_its_status_is_the_jobs() -> None:
    code = """
        import os, sys, time
        sys.exit(7) if os.environ["RANK"] == "1" else time.sleep(60)
    """
    begin = time.monotonic()
    assert Local(grace=5).start(job(code, processes=2)) == 7
    assert time.monotonic() - begin < 30


def test_a_process_that_ignores_the_request_to_end_is_ended() -> None:
    code = """
        import os, signal, sys, time
        if os.environ["RANK"] == "0":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        time.sleep(1)
        sys.exit(3)
    """
    assert Local(grace=0.2).start(job(code, processes=2)) == 3


@pytest.mark.slow
def test_a_signal_to_the_launcher_reaches_its_processes(tmp_path: Path) -> None:
    child = f"""
        import os, pathlib, time
        pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
        time.sleep(60)
    """
    launcher = f"""
        import sys
        from drivetrain.core.job import Job
        from drivetrain.launch.local import Local
        sys.exit(Local().start(Job(name="j", command=(sys.executable, "-c", {child!r}.strip()))))
    """
    launcher = launcher.replace(repr(child), repr(textwrap.dedent(child)))
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(launcher)])
    pid = tmp_path / "pid"
    end = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize(("field", "value"), [("nodes", 2), ("processes", 0)])
def test_resources_that_one_machine_cannot_give_are_refused(field: str, value: int) -> None:
    wanted = Job(name="job", command=("true",), resources=Resources(**{field: value}))
    with pytest.raises(ValueError, match=rf"resources\.{field}: found {value}"):
        Local().render(wanted)


COUNTING = """
    import os, pathlib, signal, sys, time
    folder, rank = pathlib.Path({folder!r}), os.environ["RANK"]
    (folder / f"{{os.environ['WORLD_SIZE']}}-{{rank}}").write_text(str(os.getpid()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    for _ in range(600):
        if (folder / "finish").exists():
            sys.exit(0)
        time.sleep(0.05)
"""


def wait_for(path: Path) -> None:
    for _ in range(400):
        if path.exists() and path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path.name} did not come")


@pytest.mark.slow
def test_a_request_to_end_outweighs_one_for_another_number(tmp_path: Path) -> None:
    def sizes() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 3

    def ask() -> None:
        wait_for(tmp_path / "2-0")
        wait_for(tmp_path / "2-1")
        os.kill(os.getpid(), signal.SIGHUP)

    code = f"""
        import os, pathlib, signal, time
        signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
        name = os.environ["WORLD_SIZE"] + "-" + os.environ["RANK"]
        pathlib.Path({str(tmp_path)!r}, name).write_text("x")
        time.sleep(20)
    """
    asking = threading.Thread(target=ask)
    asking.start()
    assert Local(sizes=sizes).start(job(code, processes=2)) == 75
    asking.join()
    assert not list(tmp_path.glob("3-*"))


@pytest.mark.slow
def test_on_sighup_another_number_of_processes_goes_on(tmp_path: Path) -> None:
    sizes = iter([2, 3])
    launcher = Local(sizes=lambda: next(sizes))
    before = signal.getsignal(signal.SIGHUP)  # whoever started the tests may ignore it

    def ask() -> None:
        wait_for(tmp_path / "2-1")
        os.kill(os.getpid(), signal.SIGHUP)  # as many as there are: nothing happens
        time.sleep(0.3)
        assert not (tmp_path / "3-0").exists()
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for(tmp_path / "3-2")
        (tmp_path / "finish").write_text("now")

    asking = threading.Thread(target=ask)
    asking.start()
    assert launcher.start(job(COUNTING.format(folder=str(tmp_path)), processes=2)) == 0
    asking.join()
    assert signal.getsignal(signal.SIGHUP) == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_processes_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    code = textwrap.dedent(COUNTING.format(folder=str(tmp_path)))
    launcher = (
        "import sys\nfrom drivetrain.core.job import Job\nfrom drivetrain.launch.local import Local"
        f"\nLocal().start(Job(name='j', command=(sys.executable, '-c', {code!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher])
    wait_for(tmp_path / "1-0")
    process.kill()
    process.wait()
    pid = int((tmp_path / "1-0").read_text())
    end = time.monotonic() + 10
    while lives(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not lives(pid), "the process outlived its launcher"


def lives(pid: int) -> bool:
    """Whether a process runs: one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
