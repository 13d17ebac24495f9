"""The server: protocols, batching and feedback around a bundle's graph."""

from drivetrain.core.need import need

for _module in ("httptools", "msgspec"):
    need(_module, "serve")
