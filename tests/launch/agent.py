"""An agent of a job whose processes say where they are, started by the tests: FOLDER OPTIONS."""

import json
import sys
from pathlib import Path

from drivetrain.core.job import Job, Resources
from drivetrain.launch import meeting
from drivetrain.launch.agents import Agents

PROCESS = """
import os, pathlib, signal, sys, time
place, folder = os.environ, pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
said = f"{sys.argv[2]}-{place['DRIVETRAIN_GENERATION']}-{place['RANK']}of{place['WORLD_SIZE']}"
(folder / f".{said}").write_text(f"{os.getpid()} {os.getppid()} {place['MASTER_PORT']}")
(folder / f".{said}").rename(folder / said)
while not (folder / f"finish-{sys.argv[2]}").exists():
    time.sleep(0.05)
sys.exit(int((folder / f"finish-{sys.argv[2]}").read_text()))
"""


def main(folder: Path, options: dict[str, object]) -> int:
    subject, jobs = str(options.pop("subject", "made")), options.pop("jobs", {"train": [3, 1]})
    assert isinstance(jobs, dict)
    meeting.LOSS_SECONDS = float(str(options.pop("loss_seconds", meeting.LOSS_SECONDS)))
    token = str(options.pop("token", "")).encode()
    return Agents(token=token, **options).run(  # pyright: ignore[reportArgumentType]
        [
            Job(
                name=name,
                command=(sys.executable, "-c", PROCESS, str(folder), name),
                resources=Resources(nodes=nodes, processes=processes),
            )
            for name, (nodes, processes) in jobs.items()
        ],
        subject,
    )


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
    except (ConnectionError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
