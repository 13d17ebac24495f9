"""How long a client waits at most, as the header or the parameters of its request say."""

import math
from collections.abc import Mapping
from typing import Any

from drivetrain.core.errors import wrong
from drivetrain.serve.transport.exchange import Exchange


def header_timeout(exchange: Exchange) -> float | None:
    """Seconds that the client waits at most, from ``x-timeout-ms``.

    Raises:
        ValueError: it is no positive number.
    """
    value = exchange.headers.get(b"x-timeout-ms")
    if value is None:
        return None
    try:
        return positive(float(value)) / 1e3
    except ValueError:
        found = value.decode("latin-1")
        raise wrong("header 'x-timeout-ms'", found, "a positive number of milliseconds") from None


def parameter_timeout(parameters: Mapping[str, Any]) -> float | None:
    """Seconds that the client waits at most, from the parameter ``timeout`` of V2.

    Raises:
        ValueError: it is no positive number of microseconds.
    """
    value = parameters.get("timeout")
    if value is None:
        return None
    try:
        return positive(float(value)) / 1e6
    except (TypeError, ValueError, OverflowError):
        raise wrong("parameter 'timeout'", value, "a positive number of microseconds") from None


def positive(value: float) -> float:
    """``value``, which is finite and above zero.

    Raises:
        ValueError: it is not.
    """
    if not 0 < value < math.inf:
        raise ValueError(value)
    return value
