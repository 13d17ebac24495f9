"""The compiled parts. An installation without a compiler goes without; windows need theirs."""

from pathlib import Path

from setuptools import Extension, setup


def part(module: str, *names: str, flags: tuple[str, ...] = ()) -> Extension:
    """A module out of C files that lie beside it."""
    folder = module.rpartition(".")[0].replace(".", "/")
    return Extension(
        module,
        [f"{folder}/{name}.c" for name in names],
        depends=[str(header) for header in Path(folder).glob("*.h")],
        extra_compile_args=["-O3", *flags],
        extra_link_args=["-pthread"] if "-pthread" in flags else [],
        py_limited_api=True,
        optional=True,
    )


setup(
    ext_modules=[
        part("drivetrain.core.native.search", "search", "search_bytes"),
        part(
            "drivetrain.core.native.windows",
            *("module", "track", "run", "rows", "row", "hash", "table", "key", "ask", "tree"),
            *("distinct", "exact", "layout", "blob", "dump"),
            # A fused multiplication rounds otherwise: the same bits everywhere need two operations.
            flags=("-ffp-contract=off", "-pthread"),
        ),
        part(
            "drivetrain.serve.native.compiled",
            *("module", "reader", "tensors", "json", "text", "http", "observe"),
            flags=("-fvisibility=hidden",),  # their calls of each other go no way round
        ),
        part("drivetrain.train.native.recall", "recall"),
        part("drivetrain.train.native.rows", "rows"),
    ],
    exclude_package_data={
        f"drivetrain.{stage}.native": ["*.c", "*.h"] for stage in ("core", "serve", "train")
    },
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
