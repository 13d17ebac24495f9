"""The plain JSON route: rows as a person writes them in, named predictions out."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.core.batch import Array, Batch
from drivetrain.core.errors import wrong
from drivetrain.serve.execution.columns import Values
from drivetrain.serve.execution.models import Model
from drivetrain.serve.protocols.calls import Call, Route, Service
from drivetrain.serve.protocols.timeouts import header_timeout
from drivetrain.serve.protocols.values import floats_between, nested, only
from drivetrain.serve.transport.exchange import JSON, Exchange

_MANY = re.compile(rb'\s*\{\s*"rows"\s*:\s*\[')


class RowsRoute(Route):
    """``POST /predict/{name}`` with ``{"rows": [{column: value, …}, …]}`` or one row by itself.

    It answers ``{"model": …, "version": …, "predictions": [{output: value, …}, …]}``. A missing
    value is null; a time is ISO 8601 or integer microseconds; bytes are base64. ``x-request-id``
    names the request and ``x-timeout-ms`` says how long the client waits.
    """

    name = "rows"

    def __init__(self, model: Model, service: Service) -> None:
        super().__init__(model, service)
        self._blobs = [field.name for field in model.inputs if field.dtype == "bytes"]
        row = model.columns.row
        many: Any = msgspec.defstruct("Rows", [("rows", list[row])], forbid_unknown_fields=True)
        self._decode_one = msgspec.json.Decoder(row).decode
        self._decode_many = msgspec.json.Decoder(many).decode
        names = [msgspec.json.encode(name).decode().replace("%", "%%") for name in model.outputs]
        self._row = "{" + ",".join(f"{name}:%s" for name in names) + "}"
        self._head = f'{{"model":"{model.name}","version":"{model.version}","predictions":['
        self._only_one = [field.shape for field in model.bundle.manifest.outputs] == [()]
        first = msgspec.json.encode(model.outputs[0]).decode()
        self._around = f"{self._head}{{{first}:".encode(), b"}]}"
        """The answer of one row before and behind a number, where there is one to put in."""

    def decode(self, exchange: Exchange) -> Call:
        body, columns = exchange.body, self.model.columns
        packed = columns.read(body, b"rows", self.most_rows)
        if packed is not None:
            timeout = header_timeout(exchange) if b"x-timeout-ms" in exchange.headers else None
            return Call(self, exchange, packed, packed.rows, timeout=timeout)
        found: Sequence[Values]
        try:
            many = _MANY.match(body)
            rows = self._decode_many(body).rows if many else [self._decode_one(body)]
            found, count = columns.of_rows(rows), len(rows)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            batch = self._carefully(body)
            found, count = columns.of_batch(batch), len(batch)
        return Call(self, exchange, found, count, timeout=header_timeout(exchange))

    def _carefully(self, body: bytes | bytearray) -> Batch:
        """The rows by core's own rules, which also say exactly what is wrong."""
        try:
            data = msgspec.json.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            allowed = "a row or rows"
            if b"NaN" in body or b"Infinity" in body:
                allowed += ", with null for a number that is none"
            raise ValueError(f"body: found no JSON ({error}), allowed: {allowed}.") from None
        if isinstance(data, dict) and data.keys() == {"rows"} and isinstance(data["rows"], list):
            data = data["rows"]
        elif isinstance(data, dict):
            data = [data]
        else:
            raise wrong("body", data, 'a row {column: value, …} or {"rows": [row, …]}')
        self.check_rows(len(data))
        for number, row in enumerate(data):
            if not isinstance(row, dict):
                raise wrong(f"row {number}", row, "an object {column: value, …}")
        if self._blobs:
            data = [{**row, **self._bytes(number, row)} for number, row in enumerate(data)]
        return Batch.from_rows(data, self.model.inputs)

    def _bytes(self, number: int, row: Mapping[str, Any]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for name in self._blobs:
            value = row.get(name)
            if value is None:
                continue
            try:
                found[name] = base64.b64decode(value, validate=True)
            except (TypeError, ValueError):
                raise wrong(f"row {number}, column {name!r}", value, "base64 or null") from None
        return found

    def encode_together(
        self, calls: Sequence[Call], outputs: Sequence[Array]
    ) -> tuple[Sequence[bytes], bytes, bytes] | None:
        if self._only_one and outputs[0].dtype.char == "f":
            return floats_between(outputs[0], *self._around), JSON, b""
        return None

    def encode(self, call: Call, outputs: list[Array]) -> tuple[bytes, bytes, bytes]:
        if call.rows == 1 and self._only_one and outputs[0].dtype.char == "f":
            return floats_between(outputs[0], *self._around)[0], JSON, b""
        if call.rows == 1:
            predictions = self._row % tuple([only(array) for array in outputs])
        else:
            rows = zip(*(nested(array) for array in outputs), strict=True)
            predictions = ",".join([self._row % row for row in rows])
        return f"{self._head}{predictions}]}}".encode(), JSON, b""
