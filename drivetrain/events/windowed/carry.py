"""What the stages of a plan remember of the rows that went through, carried on as bytes."""

import json
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from drivetrain.core.errors import wrong

FORMAT = 1


@runtime_checkable
class Remembers(Protocol):
    """A stage to which rows before a chunk matter."""

    @property
    def label(self) -> str:
        """The step, as it was written."""
        ...

    def dump(self) -> bytes:
        """All that it remembers."""
        ...

    def load(self, data: bytes) -> None:
        """Remember that instead.

        Raises:
            ValueError: it is damaged, or of another declaration.
        """
        ...


def pack(stages: Sequence[Remembers], rows: int) -> bytes:
    """What stages remember after so many rows."""
    parts = [stage.dump() for stage in stages]
    steps = [{"step": s.label, "bytes": len(p)} for s, p in zip(stages, parts, strict=True)]
    head = {"format": FORMAT, "rows": rows, "steps": steps}
    return b"\n".join((json.dumps(head).encode(), b"".join(parts)))


def unpack(data: bytes, stages: Sequence[Remembers]) -> int:
    """Give stages back what they remembered; after how many rows that was.

    Raises:
        ValueError: it is damaged, or of another plan.
    """
    text, _, body = data.partition(b"\n")
    try:
        head = json.loads(text)
        found = [str(entry["step"]) for entry in head["steps"]]
        sizes = [int(entry["bytes"]) for entry in head["steps"]]
        rows, form = int(head["rows"]), head["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise wrong("a plan's state", repr(error), "what Plan.state gave") from None
    steps = [stage.label for stage in stages]
    if form != FORMAT or found != steps:
        allowed = f"format {FORMAT} with {steps}, the steps of the plan that goes on"
        raise wrong("a plan's state", f"format {form} with {found}", allowed)
    if sum(sizes) != len(body):
        raise wrong("a plan's state", f"{len(body)} bytes", f"{sum(sizes)}; it is torn")
    start = 0
    for stage, size in zip(stages, sizes, strict=True):
        stage.load(body[start : start + size])
        start += size
    return rows
