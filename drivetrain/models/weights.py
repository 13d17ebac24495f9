"""Directories of weights as Hugging Face keeps them: what must lie there, and what it holds."""

import hashlib
from functools import lru_cache
from pathlib import Path

from drivetrain.core.errors import wrong

CONFIG = "config.json"
PATTERN = "model*.safetensors*"
"""One file of weights, or several with an index."""


def weights_files(directory: str | Path) -> list[Path]:
    """The configuration and the weights that lie in a directory.

    Raises:
        ValueError: it is no directory, or lacks either.
    """
    directory = Path(directory)
    weights = sorted(directory.glob(PATTERN))
    if not (directory / CONFIG).is_file() or not weights:
        allowed = f"a directory with {CONFIG} and model.safetensors; nothing is fetched"
        raise wrong("HuggingFace.weights", str(directory), allowed)
    return [directory / CONFIG, *weights]


def weights_digest(directory: str | Path | None) -> str | None:
    """SHA-256 of the configuration and the weights, hexadecimal; None where there are none.

    Raises:
        ValueError: as :func:`weights_files`.
    """
    if directory is None:
        return None
    files = weights_files(directory)
    return _digest(tuple((f, f.stat().st_mtime_ns, f.stat().st_size) for f in files))


@lru_cache(maxsize=8)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Over the files' digests; their times and sizes tell one content from another."""
    whole = hashlib.sha256()
    for path, *_ in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
