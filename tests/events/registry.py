"""A registry of Avro schemas for tests, which may be away for a while."""

import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self


class Registry:
    """Answers as Confluent's does, over HTTP on loopback; used in a ``with`` block.

    Attributes:
        address: where it answers.
        away: while it is true, every answer is status 503.

    Args:
        known: the schema at each path.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.away = False
        registry = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = known.get(self.path)
                body = json.dumps({"schema": json.dumps(found)} if found else {"error_code": 40401})
                self.send_response(503 if registry.away else 200 if found else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: Any) -> None:
                """Tests are silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
