"""The compiled parts. An installation without a compiler serves without; windows need theirs."""

from setuptools import Extension, setup

SERVER = "drivetrain/serve/native"
WINDOWS = "drivetrain/core/native"
WINDOWS_PARTS = (
    "module",
    "track",
    "run",
    "hash",
    "table",
    "key",
    "ask",
    "tree",
    "distinct",
    "exact",
    "layout",
    "blob",
    "dump",
)

setup(
    ext_modules=[
        Extension(
            "drivetrain.serve.native.compiled",
            [f"{SERVER}/{name}.c" for name in ("module", "reader", "json", "text")],
            depends=[f"{SERVER}/native.h"],
            py_limited_api=True,
            optional=True,
        ),
        Extension(
            "drivetrain.core.native.windows",
            [f"{WINDOWS}/{name}.c" for name in WINDOWS_PARTS],
            depends=[f"{WINDOWS}/windows.h"],
            # A fused multiplication rounds otherwise: the same bits everywhere need two operations.
            extra_compile_args=["-O3", "-ffp-contract=off", "-pthread"],
            extra_link_args=["-pthread"],
            py_limited_api=True,
            optional=True,
        ),
    ],
    exclude_package_data={
        name: ["*.c", "*.h"]
        for name in (
            "drivetrain.serve.native",
            "drivetrain.core.native",
        )
    },
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
