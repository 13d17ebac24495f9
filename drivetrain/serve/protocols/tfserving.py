"""TensorFlow Serving's REST interface: predict by rows or by columns, and a model's status.

Source: https://www.tensorflow.org/tfx/serving/api_rest
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.batch import Array, Batch
from drivetrain.core.errors import unknown, wrong
from drivetrain.serve.execution.columns import Values
from drivetrain.serve.execution.models import Model
from drivetrain.serve.protocols.calls import Call, Route, Service
from drivetrain.serve.protocols.constants import decode
from drivetrain.serve.protocols.timeouts import header_timeout
from drivetrain.serve.protocols.values import nested
from drivetrain.serve.transport.exchange import JSON, Exchange

SIGNATURE = "serving_default"
_KEYS = ("signature_name", "instances", "inputs")
_ROWS = re.compile(rb'\s*\{\s*"instances"\s*:\s*\[\s*\{')


def status(model: Model) -> dict[str, Any]:
    """The answer to ``GET /v1/models/{name}``."""
    found = {"error_code": "OK", "error_message": ""}
    version = {"version": model.version, "state": "AVAILABLE", "status": found}
    return {"model_version_status": [version]}


class PredictRoute(Route):
    """``POST /v1/models/{name}[/versions/{version}]:predict``.

    Either ``{"instances": [row, …]}``, answered by ``{"predictions": [row, …]}``, or
    ``{"inputs": {column: [value, …], …}}``, answered by ``{"outputs": {output: [value, …]}}``.
    Where there is one column, or one output, it stands without its name. Bytes are text, or
    ``{"b64": base64}``; null is a missing value.
    """

    name = "tfs_predict"

    def __init__(self, model: Model, service: Service) -> None:
        super().__init__(model, service)
        rows: Any = msgspec.defstruct(
            "Instances",
            [("instances", list[model.columns.row]), ("signature_name", str | None, None)],
            forbid_unknown_fields=True,
        )
        decoder: Any = msgspec.json.Decoder(rows)
        # A row's own type reads bytes as base64, which this protocol marks: these go carefully.
        blobs = any(field.dtype == "bytes" for field in model.inputs)
        self._decode = None if blobs else decoder.decode
        self._names = [msgspec.json.encode(name).decode() for name in model.outputs]

    def decode(self, exchange: Exchange) -> Call:
        found: Sequence[Values]
        body, columns = exchange.body, self.model.columns
        by_rows = True
        packed = columns.read(body, b"instances", self.most_rows) if _ROWS.match(body) else None
        if packed is not None:
            timeout = header_timeout(exchange)
            return Call(self, exchange, packed, packed.rows, timeout=timeout, options=by_rows)
        try:
            if self._decode is None or not _ROWS.match(body):
                raise ValueError
            request = self._decode(body)
            _check_signature(request.signature_name)
            found, count = columns.of_rows(request.instances), len(request.instances)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            by_rows, batch = self._carefully(body)
            found, count = columns.of_batch(batch), len(batch)
        return Call(self, exchange, found, count, timeout=header_timeout(exchange), options=by_rows)

    def _carefully(self, body: bytes | bytearray) -> tuple[bool, Batch]:
        """Whether a request comes by rows, and its rows by core's own rules."""
        try:
            data = decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ValueError(f"body: found no JSON ({error}), allowed: a request.") from None
        if not isinstance(data, dict) or ("instances" in data) == ("inputs" in data):
            raise wrong("body", data, "an object with either instances or inputs")
        for key in data:
            if key not in _KEYS:
                raise unknown("key", key, _KEYS, "body")
        _check_signature(data.get("signature_name"))
        by_rows = "instances" in data
        rows = self._of_rows(data["instances"]) if by_rows else self._of_columns(data["inputs"])
        return by_rows, Batch.from_rows(rows, self.model.inputs)

    def _of_rows(self, instances: Any) -> list[dict[str, Any]]:
        if not isinstance(instances, list):
            raise wrong("instances", instances, "a list of rows")
        self.check_rows(len(instances))
        names = self.model.inputs.names
        rows: list[dict[str, Any]] = []
        for number, row in enumerate(instances):
            if not isinstance(row, dict) or (len(names) == 1 and row.keys() == {"b64"}):
                if len(names) != 1:
                    raise wrong(f"instances[{number}]", row, "an object {column: value, …}")
                row = {names[0]: row}
            rows.append({name: _plain(value, f"row {number}") for name, value in row.items()})
        return rows

    def _of_columns(self, inputs: Any) -> list[dict[str, Any]]:
        names = self.model.inputs.names
        if isinstance(inputs, list) and len(names) == 1:
            inputs = {names[0]: inputs}
        if not isinstance(inputs, dict) or not inputs:
            raise wrong("inputs", inputs, "an object {column: [value, …], …}")
        sizes: dict[str, int] = {}
        for name, values in inputs.items():
            if not isinstance(values, list):
                raise wrong(f"inputs, column {name!r}", values, "a list of values")
            sizes[name] = len(values)
        if len(set(sizes.values())) != 1:
            raise wrong("inputs", sizes, "as many values in each column")
        self.check_rows(min(sizes.values()))
        columns = {
            name: [_plain(value, f"column {name!r}") for value in values]
            for name, values in inputs.items()
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def encode(self, call: Call, outputs: list[Array]) -> tuple[bytes, bytes, bytes]:
        columns = [nested(array) for array in outputs]
        text = self._by_rows(columns) if call.options else self._by_columns(columns)
        return text.encode(), JSON, b""

    def _by_rows(self, columns: Sequence[Sequence[str]]) -> str:
        if len(columns) == 1:
            return f'{{"predictions":[{",".join(columns[0])}]}}'
        rows = (
            ",".join(f"{name}:{value}" for name, value in zip(self._names, row, strict=True))
            for row in zip(*columns, strict=True)
        )
        return f'{{"predictions":[{",".join(f"{{{row}}}" for row in rows)}]}}'

    def _by_columns(self, columns: Sequence[Sequence[str]]) -> str:
        texts = [f"[{','.join(column)}]" for column in columns]
        if len(texts) == 1:
            return f'{{"outputs":{texts[0]}}}'
        pairs = ",".join(f"{n}:{text}" for n, text in zip(self._names, texts, strict=True))
        return f'{{"outputs":{{{pairs}}}}}'


def _check_signature(name: Any) -> None:
    if name not in (None, "", SIGNATURE):
        raise wrong("signature_name", name, SIGNATURE)


def _plain(value: Any, where: str) -> Any:
    """A value, its bytes out of their base64 if they are so marked."""
    if not isinstance(value, Mapping) or value.keys() != {"b64"}:
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (TypeError, ValueError):
        raise wrong(f"{where}, b64", value["b64"], "base64") from None
