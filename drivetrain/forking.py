"""The process from which Spark forks its Python workers: what they all need is loaded once in it.

A worker that starts by itself takes seconds to import what it runs, and a plan has several a task.
Spark starts this module by name (``core.spark.FORKING``).
"""

from contextlib import suppress
from importlib import import_module

LOADED = (
    "pandas",
    "pyarrow.compute",
    "pyarrow.parquet",
    "duckdb",
    "drivetrain.events.spark.laying",
    "drivetrain.features.engines.counting",
)


def load() -> None:
    """Import what workers run; what is absent is theirs to report."""
    for name in LOADED:
        with suppress(ImportError):
            import_module(name)


if __name__ == "__main__":
    load()
    import_module("pyspark.daemon").manager()
