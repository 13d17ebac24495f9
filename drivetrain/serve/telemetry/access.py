"""The access log: a line of JSON for each answer, written behind the server's back and bounded."""

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from drivetrain.serve.telemetry.family import Counter
from drivetrain.serve.telemetry.spans import Context, Request

log = logging.getLogger("drivetrain.serve")

_SECONDS = 0.25
_CLOSE_SECONDS = 1.0
_ENTRY_BYTES = 1024
"""About what an entry takes beside its target and its identity."""
_PIPE_BYTES = 4096
"""What POSIX has a pipe take whole, so that the lines of several workers do not mix."""


def entry(request: Request, context: Context | None) -> dict[str, Any]:
    """What the log says of a request, its trace included if it is part of one."""
    said: dict[str, Any] = {
        "at": round(time.time(), 6),
        "client": request.client,
        "method": request.method,
        "target": request.target,
        "status": request.status,
        "bytes": request.size,
        "seconds": round(request.answered - request.received, 6),
        "model": request.model,
        "version": request.version,
        "route": request.route,
        "request_id": request.request_id,
    }
    if context is not None:
        said["trace_id"] = f"{context.trace_id:032x}"
    return said


class AccessLog:
    """Writes entries to a stream as lines of JSON.

    Clients choose targets and identities: JSON escapes their line ends, and all that is not ASCII,
    so that no client can write a line of its own or move a terminal's cursor.

    A thread writes, a few times a second. When the stream blocks, such as a full pipe or a disk
    that is away, at most ``bytes`` are held; what comes beyond them is dropped and counted, and so
    is what cannot be written.

    Args:
        stream: where the lines go; a path is appended to, and ``-`` is standard output.
        dropped: counts the lines that were not written.
        most: bytes held in memory, about.

    Raises:
        OSError: the path cannot be appended to.
    """

    def __init__(self, stream: TextIO | Path, dropped: Counter, *, most: int = 16 << 20) -> None:
        self._owns = isinstance(stream, Path)
        self._stream = _opened(stream) if isinstance(stream, Path) else stream
        self._dropped = dropped
        self._most = most
        self._held = 0
        self._entries: deque[tuple[Mapping[str, Any], int]] = deque()
        self._lock = threading.Lock()
        self._broken = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drivetrain-access", daemon=True)
        self._thread.start()

    def __call__(self, entry: Mapping[str, Any]) -> None:
        """Keep an entry for the next line, or drop it when too much is held; never waits."""
        size = _ENTRY_BYTES + len(entry["target"]) + len(entry["request_id"])
        if self._held + size > self._most:
            self._let_go(0, dropped=1)
            return
        with self._lock:
            self._held += size
        self._entries.append((entry, size))

    def close(self) -> None:
        """Write what is held, as far as the stream takes it within a second, and end."""
        self._end.set()
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            log.error("the access log takes nothing: %d lines are lost", len(self._entries))
        elif self._owns:  # while the thread writes, to close would wait for it
            with contextlib.suppress(OSError):  # of a full disk, which has been told
                self._stream.close()

    def _run(self) -> None:
        ending = False
        while not ending:
            ending = self._end.wait(_SECONDS)
            while self._entries:
                count = len(self._entries)
                self._write([self._entries.popleft() for _ in range(min(count, 256))])

    def _write(self, entries: list[tuple[Mapping[str, Any], int]]) -> None:
        for text, count in _chunks(json.dumps(entry) + "\n" for entry, _ in entries):
            failed = not self._put(text)
            self._let_go(0, dropped=count if failed else 0)
        self._let_go(sum(size for _, size in entries), dropped=0)

    def _put(self, text: str) -> bool:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            if not self._broken:  # said once, not for every line
                log.exception("the access log cannot be written")
            self._broken = True
            return False
        self._broken = False
        return True

    def _let_go(self, size: int, *, dropped: int) -> None:
        with self._lock:
            self._held -= size
            self._dropped.value += dropped


def _opened(path: Path) -> TextIO:
    if str(path) == "-":  # of its own: whoever flushes sys.stdout must not wait for this log
        return os.fdopen(os.dup(1), "w", encoding="ascii")
    return path.open("a", encoding="ascii")


def _chunks(lines: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Lines together, as many as a pipe takes whole, and how many they are."""
    text, count = "", 0
    for line in lines:
        if text and len(text) + len(line) > _PIPE_BYTES:
            yield text, count
            text, count = "", 0
        text, count = text + line, count + 1
    if text:
        yield text, count
