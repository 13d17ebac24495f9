"""Model A in ONNX Runtime as every peer runs it: one thread, all rows of a batch in one run."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

CATEGORIES = tuple(f"C{n}" for n in range(1, 27))
NUMBERS = tuple(f"I{n}" for n in range(1, 14))

Rows = Sequence[dict[str, Any]]


class Graph:
    """The session of one process."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        path = os.environ["PEER_MODEL"]
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def rows(self, rows: Rows) -> list[float]:
        """The prediction of each row ``{column: value}``."""
        categories = [[row[name] for row in rows] for name in CATEGORIES]
        numbers = [[row[name] for row in rows] for name in NUMBERS]
        return self.columns(np.array(categories, np.int64), np.array(numbers, np.float32)).tolist()

    def columns(self, categories: Any, numbers: Any) -> Any:
        """Predictions ``[rows]`` for int64 ``[26, rows]`` and float32 ``[13, rows]``."""
        feeds = dict(zip(CATEGORIES, categories, strict=True))
        feeds.update(zip(NUMBERS, numbers, strict=True))
        return self.session.run(None, feeds)[0]
