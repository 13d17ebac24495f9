"""A page of metrics for Prometheus, served from a thread on the loopback."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

from drivetrain.watch.exposition import CONTENT_TYPE


class Endpoint:
    """Answers ``GET /metrics`` with the text that was offered last; a context manager."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """Args:
        port: 0 takes a free one.
        host: the address to listen on.

        Raises:
            OSError: the port is taken, or not ours to take.
        """
        self._text = b""
        endpoint = self

        class Page(BaseHTTPRequestHandler):
            timeout = 5  # a client that sends nothing does not hold a thread for ever

            def do_GET(self) -> None:
                found = self.path.partition("?")[0] == "/metrics"
                body = endpoint._text if found else b"metrics are at /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Scrapes are no news."""

        self._server = ThreadingHTTPServer((host, port), Page)
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def offer(self, text: str) -> None:
        """What the next scrape gets."""
        self._text = text.encode()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
