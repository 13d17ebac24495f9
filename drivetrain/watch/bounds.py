"""The bounds that a system declared, as its dashboard and its alerts read them from a manifest."""

from collections.abc import Mapping

from drivetrain.core.bundle import Manifest

MUCH = 0.25
"""The population stability index that is commonly read as a great change (Siddiqi 2006)."""


def p99_bound(manifest: Manifest) -> float | None:
    """The declared bound of the 99th percentile in milliseconds, if there is one."""
    _, at_most = manifest.bounds.get("latency/p99_ms", (None, None))
    return at_most


def drift_bounds(manifest: Manifest) -> Mapping[float, tuple[str, ...]]:
    """The columns that must keep each bound; ``()`` stands for every column.

    A column is found in the declared bounds by its metric, ``…drift/psi/COLUMN``. A system that
    declares none gets the customary one for all.
    """
    found: dict[float, tuple[str, ...]] = {}
    for name, (_, at_most) in sorted(manifest.bounds.items()):
        before, mark, column = name.partition("drift/psi/")
        if mark and at_most is not None and (not before or before.endswith("/")):
            found[at_most] = (*found.get(at_most, ()), column)
    return found or {MUCH: ()}
