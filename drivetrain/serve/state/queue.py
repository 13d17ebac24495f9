"""Posts that wait to be written: a bounded number of bytes, taken a group at a time."""

from drivetrain.serve.state.kept import Told
from drivetrain.serve.state.posts import Post

WAITING_BYTES = 64 << 20
"""What may wait; whoever finds more is told to come again."""

Waits = tuple[Post, Told]
"""A post, and who is told what became of it."""


class Queue:
    """What came while the posts before were being written.

    Args:
        group_bytes: so much is written at once, or one post if that is larger.
    """

    def __init__(self, group_bytes: int) -> None:
        self._group_bytes = group_bytes
        self._waiting: list[Waits] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def fits(self, post: Post) -> bool:
        """Whether a post may wait."""
        return self.bytes + post.size <= WAITING_BYTES

    def add(self, post: Post, told: Told) -> None:
        """Let it wait."""
        self._waiting.append((post, told))
        self.bytes += post.size

    def take(self) -> list[Waits]:
        """The next group, in the order in which they came."""
        size, count = 0, 0
        for post, _ in self._waiting:
            if count and size + post.size > self._group_bytes:
                break
            size, count = size + post.size, count + 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        self.bytes -= size
        return group
