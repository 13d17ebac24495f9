"""From raw flights to a served model: runs each verb as a person would, and leaves the server up.

`make run` starts this. `python examples/tour.py --stop` ends the server that it left.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
SITE = HERE.parent / "sites" / "laptop.toml"
STATE = Path(".drivetrain") / "tour.json"
ALIAS = "flights"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stop", action="store_true", help="end the server that a tour left")
    parser.add_argument("--set", action="append", default=[], help="passed on to `drivetrain run`")
    parser.add_argument("--once", action="store_true", help="end the server at the end")
    options = parser.parse_args()
    stop()
    if options.stop:
        return 0
    settings = [f"--set={setting}" for setting in options.set]
    said = verb("run", str(HERE / "flights.py"), *settings)
    digest = said.partition("\nbundle ")[2].split()[0]
    verb("promote", digest, ALIAS)
    url = serve()
    predict(url, digest)
    print(f"\nThe server stays at {url}. Try:\n")
    print(f"  curl {url}/v2/models/{ALIAS}")
    print(f"  curl {url}/metrics")
    print(f"  .venv/bin/drivetrain watch {ALIAS} --on sites/laptop.toml --url {url}")
    print("  make stop")
    if options.once:
        stop()
    return 0


def drivetrain(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "drivetrain.cli", *arguments, "--on", str(SITE)]


def verb(*arguments: str) -> str:
    """Run a verb and show what it says, its progress on standard error; gives its output."""
    print("\n$ drivetrain " + " ".join(arguments), flush=True)
    done = subprocess.run(
        drivetrain(*arguments), stdout=subprocess.PIPE, encoding="utf-8", check=False
    )
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def serve() -> str:
    port = free_port()
    log = Path(".drivetrain/serve.log")
    print(f"\n$ drivetrain serve {ALIAS} --port {port}", flush=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            drivetrain("serve", ALIAS, "--port", str(port)),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    STATE.write_text(json.dumps({"pid": process.pid, "url": url}))
    for _ in range(300):
        if process.poll() is not None:
            sys.exit(f"the server ended with {process.returncode}:\n{log.read_text()}")
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=1):
                return url
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.exit(f"the server was not ready within 30 s:\n{log.read_text()}")


def free_port() -> int:
    """The site's port, or a free one where that is taken."""
    for port in (8080, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return probe.getsockname()[1]
            except OSError:
                continue
    raise AssertionError("a machine has a free port")


def predict(url: str, digest: str) -> None:
    """Send a handful of real flights of the test months, as a person would write them."""
    rows, truths = flights(6, digest)
    body = json.dumps({"rows": rows}).encode()
    request = urllib.request.Request(
        f"{url}/predict/{ALIAS}", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        predictions = json.load(answer)["predictions"]
    print(f"\nPOST {url}/predict/{ALIAS}, real flights of late 2013, three late, three not:\n")
    print(f"  {'flight':28}{'chance of > 15 min late':>24}{'was late':>10}")
    for row, truth, said in zip(rows, truths, predictions, strict=True):
        name = f"{row['carrier']} {row['origin']} to {row['dest']}"
        print(f"  {name:28}{said['late']:>24.3f}{'yes' if truth else 'no':>10}")


def flights(count: int, digest: str) -> tuple[list[dict[str, object]], list[bool]]:
    """Raw rows that the model never saw, half of them late, and whether each was."""
    import numpy as np

    from drivetrain.core.bundle import Bundle
    from drivetrain.core.schema import MISSING_INT
    from drivetrain.core.site import Site
    from drivetrain.events.prepared import find

    site = Site.load(SITE)
    bundle = Bundle.open(Path(site.store) / "bundles" / digest)
    wanted = bundle.manifest.parents["events"]
    prepared = find(Path(site.work, "events"), wanted)
    assert prepared is not None, "the run that came before left its events"
    batch = next(iter(prepared.batches("test")))
    groups = (np.flatnonzero(batch["late"] == outcome) for outcome in (1, 0))
    picked = [group[:: len(group) // (count // 2)][: count // 2] for group in groups]
    rows = list(batch.take(np.concatenate(picked)).rows())
    missing = (MISSING_INT, "")
    return (
        [
            {
                name: None if row[name] in missing or row[name] != row[name] else row[name]
                for name in bundle.manifest.inputs.names
            }
            for row in rows
        ],
        [bool(row["late"]) for row in rows],
    )


def stop() -> None:
    """End the server that an earlier tour left, if it is still that server."""
    if not STATE.exists():
        return
    pid = json.loads(STATE.read_text())["pid"]
    STATE.unlink()
    if "drivetrain.cli" in command_of(pid):
        os.kill(pid, signal.SIGTERM)
        print(f"stopped the server of an earlier tour (process {pid})")


def command_of(pid: int) -> str:
    """The command line of a process, empty if there is none."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return ""
    ps = ["ps", "-p", str(pid), "-o", "command="]
    return subprocess.run(ps, capture_output=True, text=True, check=False).stdout


if __name__ == "__main__":
    sys.exit(main())
