"""`drivetrain serve` with a site: its token, its workers, and the watch that brings the token."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from drivetrain.registry.registry import Registry

ROW = {"carrier": "AA", "distance": 733.5, "hour": 7}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers share a port on Linux")
def test_a_site_says_how_many_serve_and_what_clients_bring(tiny, tmp_path):
    registry = Registry(tmp_path / "store")
    registry.add(tiny.path)
    registry.promote(tiny.digest, "late")
    (tmp_path / "token").write_text("sesame\n")
    site = tmp_path / "site.toml"
    site.write_text(
        f'store = "{tmp_path}/store"\n'
        f'[serve]\nport = 0\nworkers = 2\ntoken_file = "{tmp_path}/token"\n'
    )
    command = [sys.executable, "-m", "drivetrain.cli"]
    with subprocess.Popen(
        [*command, "serve", "late", "--on", site],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as server:
        try:
            url = server.stdout.readline().split()[-1]
            request = urllib.request.Request(f"{url}/predict/late", json.dumps(ROW).encode())
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                urllib.request.urlopen(request, timeout=10)
            refused.value.close()
            request.add_header("Authorization", "Bearer sesame")
            with urllib.request.urlopen(request, timeout=10) as reply:
                assert json.load(reply)["version"] == tiny.digest[:12]
            watch = subprocess.run(
                [*command, "watch", "late", "--on", site, "--url", url, "--once", "--json"],
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert '"ready": true' in watch.stdout or '"ready":true' in watch.stdout, watch
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0
