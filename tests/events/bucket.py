"""An S3 server for tests: localbucket on loopback, with the bulk delete that it lacks."""

import subprocess
import sys
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

SERVER = """
    import io
    import sys
    from http.server import ThreadingHTTPServer
    from pathlib import Path
    from xml.etree import ElementTree
    from xml.sax.saxutils import escape

    from localbucket import S3Handler

    root = Path(sys.argv[1])


    class Handler(S3Handler):
        data_root = root / "s3"

        def do_POST(self):
            if not self.path.endswith("?delete"):
                return super().do_POST()
            # Of many objects at once, which the server does not know.
            body = ElementTree.fromstring(self.rfile.read(int(self.headers["Content-Length"])))
            keys = [item.text for item in body.iter() if item.tag.endswith("Key")]
            for key in keys:
                (self.data_root / "bucket" / key).unlink()
            gone = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
            answer = f"<DeleteResult>{gone}</DeleteResult>".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _dispatch(self, handle):
            if (root / "refusing").exists():
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif (root / "losing").exists() and self.command == "PUT" and ".json" in self.path:
                answered, self.wfile = self.wfile, io.BytesIO()
                super()._dispatch(handle)
                self.wfile, self.close_connection = answered, True
            else:
                super()._dispatch(handle)

        def log_message(self, format, *args):
            pass


    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
"""


class Bucket:
    """An S3 server on loopback that refuses, or loses its answers, as it is told.

    It is a process of its own: the library holds Python's lock while it lists files.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "s3" / "bucket").mkdir(parents=True)
        command = [sys.executable, "-c", textwrap.dedent(SERVER), str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self._said = self.process.stdout
        told = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(self._said.readline())}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "made",
            "AWS_SECRET_ACCESS_KEY": "made-secret",
        }
        for name, value in told.items():
            monkeypatch.setenv(name, value)

    @contextmanager
    def being(self, state: str) -> Generator[None]:
        """For the time of a block every request is ``refusing`` (403), or answers ``losing``."""
        (self.folder / state).touch()
        yield
        (self.folder / state).unlink()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._said.close()
