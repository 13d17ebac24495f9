"""Parameters of Triton's sequences, of which there are none: no model here has a state."""

from collections.abc import Mapping
from typing import Any

from drivetrain.core.errors import wrong

_NAMES = ("sequence_id", "sequence_start", "sequence_end")


def refuse_sequences(parameters: Mapping[str, Any]) -> None:
    """See that a request belongs to no sequence: an answer that ignored it would be a wrong one.

    Raises:
        ValueError: it does.
    """
    for name in _NAMES:
        if name in parameters:
            raise wrong("parameter", name, "none of sequences: no model here has a state")
