"""JSON with NaN and Infinity, which its grammar has not and clients of other servers send.

Sources: Triton's parser takes them (rapidjson's ``kParseNanAndInfFlag``), and ``tritonclient``
writes them; https://www.tensorflow.org/tfx/serving/api_rest, "JSON conformance".
"""

import json
import re
from typing import Any

import msgspec

_STRING = rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)'
"""Also one that does not end: it would be tried anew at each quote in it, in quadratic time."""
_TOKENS = re.compile(_STRING + rb"|-?(?:Infinity|NaN)", re.DOTALL)


def decode(text: bytes | bytearray | memoryview) -> Any:
    """Plain data; NaN and Infinity are the floats that they name.

    Raises:
        msgspec.MsgspecError: it is no JSON otherwise; places are those in ``text``.
        ValueError: it is no JSON otherwise, or no UTF-8.
        RecursionError: it is nested too deep.
    """
    found = bytes(text)
    try:
        return msgspec.json.decode(found)
    except msgspec.DecodeError:
        if b"NaN" not in found and b"Infinity" not in found:
            raise
    msgspec.json.decode(_TOKENS.sub(_as_number, found))  # all else is as strict as ever
    return json.loads(found.decode())


def _as_number(token: re.Match[bytes]) -> bytes:
    text = token[0]
    return text if text[:1] == b'"' else b"0".ljust(len(text))
