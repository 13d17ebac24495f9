"""A transport that keeps what was written, and holds a connection to what one may do with it."""

import asyncio


class Wire(asyncio.Transport):
    """The server's end of a connection to nobody.

    Attributes:
        writes: what was written, each time.
        unsent: bytes of it that its client has not taken.
        paused: whether reading is.
        ended: whether the server's side is closed.
        closing: whether the whole is.
        aborted: whether that came at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.unsent = 0
        self.paused = self.ended = self.closing = self.aborted = False

    @property
    def data(self) -> bytes:
        """All that was written."""
        return b"".join(self.writes)

    def write(self, data: bytes) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert not self.ended, "nothing is written behind the end"
        assert not self.closing, "nothing is written to what is closed"
        self.writes.append(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        assert not self.paused, "reading is paused once"
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused, "what is resumed was paused"
        self.paused = False

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True
