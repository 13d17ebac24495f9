"""The compiled part of the server, which an installation without a compiler goes without."""

from setuptools import Extension, setup

SOURCES = "drivetrain/serve/native"

setup(
    ext_modules=[
        Extension(
            "drivetrain.serve.native.compiled",
            [f"{SOURCES}/{name}.c" for name in ("module", "reader", "json", "text")],
            depends=[f"{SOURCES}/native.h"],
            py_limited_api=True,
            optional=True,
        )
    ],
    exclude_package_data={"drivetrain.serve.native": ["*.c", "*.h"]},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
