"""The Open Inference Protocol V2 over HTTP: metadata, and inference over a bundle's raw columns."""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import msgspec

from drivetrain.core.batch import Array
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import Schema
from drivetrain.serve.execution.columns import Values
from drivetrain.serve.execution.models import Model
from drivetrain.serve.execution.packed import Packed
from drivetrain.serve.protocols.calls import (
    Call,
    Route,
    Service,
    read_input,
    shared_memory,
)
from drivetrain.serve.protocols.constants import decode
from drivetrain.serve.protocols.identity import body_id
from drivetrain.serve.protocols.layout import Layout, Layouts
from drivetrain.serve.protocols.sequences import refuse_sequences
from drivetrain.serve.protocols.tensors import (
    as_they_are,
    check,
    from_binary,
    from_json,
    plain,
    to_binary,
    to_json,
)
from drivetrain.serve.protocols.timeouts import header_timeout, parameter_timeout
from drivetrain.serve.protocols.values import floats_between
from drivetrain.serve.transport.exchange import JSON, Exchange
from drivetrain.serve.workers.shared_memory import Place

BINARY = b"application/octet-stream"


def server_metadata(managed: bool = False) -> dict[str, Any]:
    """The answer to ``GET /v2``, with the extensions that are offered.

    Args:
        managed: whether it came in where managing is allowed.
    """
    extensions = ["binary_tensor_data", "model_configuration", "statistics"]
    if managed:
        extensions += ["model_repository", "system_shared_memory"]
    return {"name": "drivetrain", "version": own_version(), "extensions": extensions}


@cache
def own_version() -> str:
    """This package's, looked up among all that are installed, which takes a while."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("drivetrain")
    except PackageNotFoundError:
        return "unknown"


def model_metadata(model: Model, versions: Sequence[str]) -> dict[str, Any]:
    """The answer to ``GET /v2/models/{name}``, which has these versions."""
    return {
        "name": model.name,
        "versions": list(versions),
        "platform": f"{model.backend}_onnx",
        "inputs": _tensors(model.inputs),
        "outputs": _tensors(model.bundle.manifest.outputs),
    }


def _tensors(schema: Schema) -> list[dict[str, Any]]:
    return [
        {
            "name": field.name,
            "datatype": field.v2,
            "shape": [-1, *(-1 if n is None else n for n in field.shape)],
        }
        for field in schema
    ]


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    outputs: list[_Output] | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


class _Asked(msgspec.Struct):
    """What an answer holds: of each output its position and whether it is binary, or where in
    shared memory it goes; and the id to echo."""

    id: str | None
    outputs: list[tuple[int, bool | Place]]


class InferRoute(Route):
    """``POST /v2/models/{name}[/versions/{version}]/infer``.

    Inputs are the bundle's raw columns, each with the datatype that its metadata names and the
    shape ``[rows]`` or ``[rows, 1]`` (or ``[rows, …]`` where the column has a shape); null in
    JSON data is a missing value. The parameter ``timeout`` is in microseconds.
    """

    name = "v2_infer"

    def __init__(self, model: Model, service: Service) -> None:
        super().__init__(model, service)
        self._decode = msgspec.json.Decoder(_Request).decode
        self._layouts = Layouts()
        self._inputs = {field.name: (n, field) for n, field in enumerate(model.inputs)}
        self._quick = {
            field.name: (n, field.v2, as_they_are(field)) for n, field in enumerate(model.inputs)
        }
        self._positions = {name: number for number, name in enumerate(model.outputs)}
        self._all_json: list[tuple[int, bool | Place]] = [
            (number, False) for number in range(len(model.outputs))
        ]
        self._heads = [
            f'{{"name":{json.dumps(field.name)},"datatype":"{field.v2}","shape":'
            for field in model.bundle.manifest.outputs
        ]
        self._head = f'{{"model_name":"{model.name}","model_version":"{model.version}",'
        self._only_one = [field.shape for field in model.bundle.manifest.outputs] == [()]

    def decode(self, exchange: Exchange) -> Call:
        text, binary = _split(exchange)
        if len(binary):
            layout = self._layouts.find(text := bytes(text), binary)
            if layout is not None:
                return self._again(exchange, layout, binary)
        request, packed = self._read(text)
        columns: Sequence[Values]
        if packed is None:
            columns, rows, beside = self._columns(exchange, request.inputs, binary)
        else:
            columns, rows, beside = packed, packed.rows, 0
        timeout = header_timeout(exchange)
        asked = _Asked(request.id, self._all_json)
        if request.outputs or request.parameters:
            parameters = request.parameters or {}
            refuse_sequences(parameters)
            asked.outputs = self._outputs(exchange, request.outputs, parameters)
            timeout = parameter_timeout(parameters) or timeout
        if len(binary) and request.id is None:
            self._layouts.keep(bytes(text), self._layout(request, rows, asked))
        return Call(
            self,
            exchange,
            columns,
            rows,
            request_id=body_id(request.id),
            timeout=timeout,
            options=asked,
            beside=beside,
        )

    def _read(self, text: bytes | bytearray | memoryview) -> tuple[_Request, Packed | None]:
        """A request, and its columns where all of them are plain numbers that the compiled part
        reads; else they are in its inputs.

        Raises:
            ValueError: it is none of V2.
        """
        found = None
        if type(text) is not memoryview:  # as it is where binary data comes behind it
            found = self.model.columns.read_tensors(text, self.most_rows)
        if found is not None:
            packed, start, end = found
            rest = bytes(text[end:])
            if b"inputs" not in rest and b"\\" not in rest:  # else they may be there twice
                with suppress(msgspec.MsgspecError, ValueError, RecursionError):
                    return self._decode(b"%b[]%b" % (text[:start], rest)), packed
        try:
            return self._whole(text), None
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ValueError(f"body: {error}; allowed: an inference request of V2.") from None

    def _whole(self, text: bytes | bytearray | memoryview) -> _Request:
        try:
            return self._decode(text)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return msgspec.convert(decode(text), _Request)

    def _again(self, exchange: Exchange, layout: Layout, binary: memoryview) -> Call:
        """The call of a request whose JSON is known."""
        timeout = header_timeout(exchange)
        return Call(
            self,
            exchange,
            layout.columns(binary),
            layout.rows,
            timeout=layout.timeout or timeout,
            options=_Asked(None, layout.outputs),
        )

    def _layout(self, request: _Request, rows: int, asked: _Asked) -> Layout | None:
        if any(isinstance(binary, Place) for _, binary in asked.outputs):
            return None
        timeout = parameter_timeout(request.parameters or {})
        form = self.model.columns.form
        return Layout.of(request.inputs, self._inputs, rows, asked.outputs, timeout, form)

    def _columns(
        self, exchange: Exchange, inputs: list[_Input], binary: memoryview
    ) -> tuple[list[Values], int, int]:
        """The columns, their rows, and the bytes of them that lay in shared memory."""
        columns: list[Values | None] = [None] * len(self._inputs)
        rows, start, beside = 0, 0, 0
        for tensor in inputs:
            quick = self._quick.get(tensor.name)
            if (
                quick is not None
                and tensor.parameters is None
                and tensor.datatype == quick[1]
                and columns[quick[0]] is None
                and plain(quick[2], tensor.shape, tensor.data)
                and rows in (0, tensor.shape[0])
            ):
                columns[quick[0]], rows = tensor.data, tensor.shape[0]
                continue
            if tensor.name not in self._inputs:
                raise unknown("input", tensor.name, self._inputs, self.model.name)
            number, field = self._inputs[tensor.name]
            if columns[number] is not None:
                raise ValueError(f"input {tensor.name!r}: found twice, allowed: once.")
            found = check(field, tensor.datatype, tensor.shape)
            if rows and found != rows:
                raise wrong(f"input {tensor.name!r}, rows", found, f"{rows} as the inputs before")
            rows = found
            place = _place(tensor)
            if place is not None:
                data = read_input(self.service, exchange, tensor.name, place, beside)
                columns[number] = from_binary(field, tensor.shape, memoryview(data))
                beside += len(data)
                continue
            size = _binary_size(tensor)
            if size is None:
                assert tensor.data is not None
                columns[number] = from_json(field, tensor.shape, tensor.data)
                continue
            if start + size > len(binary):
                raise wrong(f"input {tensor.name!r}, binary_data_size", size,
                            f"at most the {len(binary) - start} bytes that are left")  # fmt: skip
            columns[number] = from_binary(field, tensor.shape, binary[start : start + size])
            start += size
        if start != len(binary):
            raise wrong("body", f"{len(binary)} bytes of binary data", f"{start} as inputs say")
        absent = [name for name, (number, _) in self._inputs.items() if columns[number] is None]
        if absent:
            raise ValueError(
                f"inputs: found no {', '.join(map(repr, absent))}, allowed: each of "
                f"{', '.join(self._inputs)}."
            )
        return [column for column in columns if column is not None], rows, beside

    def _outputs(
        self, exchange: Exchange, outputs: list[_Output] | None, parameters: dict[str, Any]
    ) -> list[tuple[int, bool | Place]]:
        default = _flag("parameter 'binary_data_output'", parameters.get("binary_data_output"))
        if not outputs:
            return [(number, default) for number in range(len(self._heads))]
        chosen: dict[int, bool | Place] = {}
        for output in outputs:
            if output.name not in self._positions:
                raise unknown("output", output.name, self._positions, self.model.name)
            number = self._positions[output.name]
            if number in chosen:
                raise ValueError(f"output {output.name!r}: found twice, allowed: once.")
            given = output.parameters or {}
            if "classification" in given:
                raise wrong(f"output {output.name!r}, parameter", "classification", "binary_data")
            where = f"output {output.name!r}"
            place = Place.of(where, given)
            if place is not None:
                shared_memory(self.service, exchange).check(where, place, writes=True)
                chosen[number] = place
                continue
            where = f"{where}, parameter 'binary_data'"
            binary = _flag(where, given["binary_data"]) if "binary_data" in given else default
            chosen[number] = binary
        return list(chosen.items())

    def encode_together(
        self, calls: Sequence[Call], outputs: Sequence[Array]
    ) -> tuple[Sequence[bytes], bytes, bytes] | None:
        array, asked = outputs[0], calls[0].options.outputs
        if not self._only_one or array.dtype.char != "f" or len(asked) != 1:
            return None
        if [call for call in calls if call.options.id is not None or call.options.outputs != asked]:
            return None
        head = f'{self._head}"outputs":[{self._heads[0]}[1],'
        if asked[0][1] is False:
            return floats_between(array, f'{head}"data":['.encode(), b"]}]}"), JSON, b""
        if asked[0][1] is True:
            size, data = array.itemsize, to_binary(array)
            text = f'{head}"parameters":{{"binary_data_size":{size}}}}}]}}'.encode()
            bodies = [text + data[at : at + size] for at in range(0, len(data), size)]
            return bodies, BINARY, _length_of(text)
        return None

    def encode(self, call: Call, outputs: list[Array]) -> tuple[bytes, bytes, bytes]:
        asked: _Asked = call.options
        parts: list[str] = []
        blobs: list[bytes] = []
        for number, binary in asked.outputs:
            array = outputs[number]
            head = f"{self._heads[number]}{list(array.shape)},"
            if isinstance(binary, Place):
                parts.append(f"{head}{self._write(number, binary, array)}}}")
            elif binary:
                blob = to_binary(array)
                blobs.append(blob)
                parts.append(f'{head}"parameters":{{"binary_data_size":{len(blob)}}}}}')
            else:
                parts.append(f'{head}"data":{to_json(array)}}}')
        identity = "" if asked.id is None else f'"id":{json.dumps(asked.id)},'
        text = f'{self._head}{identity}"outputs":[{",".join(parts)}]}}'.encode()
        if not blobs:
            return text, JSON, b""
        return b"".join((text, *blobs)), BINARY, _length_of(text)

    def _write(self, number: int, place: Place, array: Array) -> str:
        """Put an output into shared memory; gives what the answer says of it."""
        assert self.service.shared_memory is not None
        data = to_binary(array)
        self.service.shared_memory.write(f"output {self.model.outputs[number]!r}", place, data)
        parameters: dict[str, Any] = {
            "shared_memory_region": place.region,
            "shared_memory_byte_size": len(data),
        }
        if place.offset:
            parameters["shared_memory_offset"] = place.offset
        return f'"parameters":{json.dumps(parameters)}'


def _length_of(text: bytes) -> bytes:
    """The header line that says where the JSON of an answer ends."""
    return b"Inference-Header-Content-Length: %d\r\n" % len(text)


def _split(exchange: Exchange) -> tuple[bytes | bytearray | memoryview, memoryview]:
    """A body's JSON, and the binary data behind it."""
    value = exchange.headers.get(b"inference-header-content-length")
    if value is None:
        return exchange.body, memoryview(b"")
    body = memoryview(exchange.body)
    if not (value.isdigit() and len(value) < 12 and int(value) <= len(body)):
        raise wrong(
            "header 'inference-header-content-length'",
            value.decode("latin-1"),
            f"at most the {len(body)} bytes of the body",
        )
    return body[: int(value)], body[int(value) :]


def _place(tensor: _Input) -> Place | None:
    if not tensor.parameters:
        return None
    where = f"input {tensor.name!r}"
    place = Place.of(where, tensor.parameters)
    if place is not None and (tensor.data is not None or "binary_data_size" in tensor.parameters):
        raise ValueError(f"{where}: found data and shared_memory_region, allowed: one of them.")
    return place


def _binary_size(tensor: _Input) -> int | None:
    size = (tensor.parameters or {}).get("binary_data_size")
    where = f"input {tensor.name!r}"
    if size is None:
        if tensor.data is None:
            raise ValueError(f"{where}: found no data, allowed: data or binary_data_size.")
        return None
    if tensor.data is not None:
        raise ValueError(f"{where}: found data and binary_data_size, allowed: one of them.")
    if type(size) is not int or size < 0:
        raise wrong(f"{where}, binary_data_size", size, "a number of bytes")
    return size


def _flag(where: str, value: Any) -> bool:
    if value is not None and type(value) is not bool:
        raise wrong(where, value, "true or false")
    return bool(value)
