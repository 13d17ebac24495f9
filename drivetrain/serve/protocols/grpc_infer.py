"""ModelInfer of the Open Inference Protocol V2 over gRPC: a message's bytes to columns and back.

Clients ask for the same inputs in the same shape again and again, and only the values differ. So
the declarations of a request's inputs are parsed once and remembered by their bytes; a request
that begins alike is read by comparing, and its values by their known places.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import unknown, wrong
from drivetrain.serve.execution.columns import Values
from drivetrain.serve.execution.models import Model
from drivetrain.serve.protocols.calls import (
    Call,
    Route,
    Service,
    read_input,
    shared_memory,
)
from drivetrain.serve.protocols.grpc_layout import RAW, Input, Layout
from drivetrain.serve.protocols.grpc_method import PROTOBUF, parsed
from drivetrain.serve.protocols.identity import body_id
from drivetrain.serve.protocols.messages_v2 import messages
from drivetrain.serve.protocols.sequences import refuse_sequences
from drivetrain.serve.protocols.tensors import check, from_binary, to_binary
from drivetrain.serve.protocols.timeouts import header_timeout, parameter_timeout
from drivetrain.serve.protocols.wire import MalformedError, Span, chunk, read_chunk, split, varint
from drivetrain.serve.transport.exchange import Exchange
from drivetrain.serve.workers.shared_memory import Place

_NAME, _VERSION, _ID, _PARAMETERS, _INPUTS, _OUTPUTS = range(1, 7)
_CONTENTS: Mapping[str, str] = {
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_MOST_LAYOUTS = 256
_LONGEST_HEAD = 1 << 16
_LONGEST_KNOWN = 512
_MOST_FIELDS = 4096
_NO_RAW = b"\x32\x00"
_EACH_RAW = "one for each input that has no contents and is not in shared memory"
_SPARE_FIELDS = 1000
"""Fields that a request may have beside one input, its values and one output for each column."""


_NOWHERE: Mapping[int, Place] = {}


class Asked(NamedTuple):
    """What an answer holds.

    Attributes:
        identity: the field ``id`` of the answer, empty where the request had none.
        outputs: their positions.
        places: where in shared memory some of them go.
    """

    identity: bytes
    outputs: tuple[int, ...]
    places: Mapping[int, Place] = _NOWHERE


class GrpcInferRoute(Route):
    """``inference.GRPCInferenceService/ModelInfer``.

    Inputs are the bundle's raw columns as over HTTP, in ``raw_input_contents`` or in the typed
    contents that belong to their datatype; outputs are raw. The parameter ``timeout`` is in
    microseconds, and the sooner of it and the call's own deadline counts.
    """

    name = "grpc_infer"
    parameters = b""
    """The field ``parameters`` of every answer."""

    def __init__(self, model: Model, service: Service) -> None:
        super().__init__(model, service)
        self._inputs = {field.name: (n, field) for n, field in enumerate(model.inputs)}
        self._positions = {name: number for number, name in enumerate(model.outputs)}
        self._all = tuple(range(len(model.outputs)))
        self._most = 2 * len(self._inputs) + len(self._all) + _SPARE_FIELDS
        self._layouts: dict[bytes, Layout] = {}
        self._known: dict[bytes, Input] = {}
        self._fields = model.bundle.manifest.outputs.fields
        little = sys.byteorder == "little"
        self._as_they_are = [little and field.v2 != "BYTES" for field in self._fields]
        self._declared: list[dict[tuple[int, ...], bytes]] = [{} for _ in self._fields]
        self._head = chunk(_NAME, model.name.encode()) + chunk(_VERSION, model.version.encode())

    # -- requests ------------------------------------------------------------------------------

    def decode(self, exchange: Exchange) -> Call:
        body = exchange.body
        start = at = after_address(body)
        text = ""
        if body[at : at + 1] == b"\x1a":
            start, at = read_chunk(body, at + 1)
            text = _text("id", body[start:at])
        if at + 1 < len(body):
            layout = self._layouts.get(bytes(body[at : at + 2 + body[at + 1]]))
            if layout is not None and body.startswith(layout.head, at):
                columns = layout.read(body, at + len(layout.head))
                if columns is not None:
                    asked = Asked(chunk(_ID, text.encode()) if text else b"", layout.outputs)
                    return self._call(exchange, columns, layout.rows, text, asked)
        return self._carefully(exchange)

    def _call(
        self,
        exchange: Exchange,
        columns: Sequence[Values],
        rows: int,
        text: str,
        asked: Asked,
        timeout: float | None = None,
        beside: int = 0,
    ) -> Call:
        return Call(
            self,
            exchange,
            columns,
            rows,
            request_id=body_id(text),
            timeout=timeout or header_timeout(exchange),
            options=asked,
            beside=beside,
        )

    def _carefully(self, exchange: Exchange) -> Call:
        """A request whose like was not seen lately, or that has something of its own."""
        body = exchange.body
        fields, ordered = split(body, range(_NAME, RAW + 1), self._most)
        for number, name in ((_NAME, "model_name"), (_VERSION, "model_version"), (_ID, "id")):
            if len(fields[number]) > 1:
                raise ValueError(f"{name}: found twice, allowed: once.")
        text = "".join(_text("id", body[start:end]) for _, start, end in fields[_ID])
        parameters = self._parameters(body, fields[_PARAMETERS])
        inputs = [self._input(bytes(body[start:end])) for _, start, end in fields[_INPUTS]]
        self._check_inputs(inputs)
        outputs, places = self._outputs(exchange, fields[_OUTPUTS])
        columns, beside = self._columns(exchange, inputs, fields[RAW])
        if ordered and not parameters and not places and len(fields[RAW]) == len(inputs):
            self._learn(body, fields, inputs, outputs)
        identity = chunk(_ID, text.encode()) if text else b""
        asked = Asked(identity, outputs, places)
        timeout = parameter_timeout(parameters)
        return self._call(exchange, columns, inputs[0].shape[0], text, asked, timeout, beside)

    def _learn(
        self,
        body: bytes | bytearray,
        fields: Mapping[int, Sequence[Span]],
        inputs: Sequence[Input],
        outputs: tuple[int, ...],
    ) -> None:
        begin, _, end = fields[_INPUTS][0]
        values = fields[RAW][0][0]
        if values - begin > _LONGEST_HEAD:
            return
        if len(self._layouts) >= _MOST_LAYOUTS:
            self._layouts.clear()
        layout = Layout(bytes(body[begin:values]), inputs, outputs)
        self._layouts[bytes(body[begin:end])] = layout

    def _parameters(
        self, body: bytes | bytearray, fields: Sequence[Span]
    ) -> dict[str, bool | int | float | str]:
        if not fields:
            return {}
        found = parsed(
            messages, "ModelInferRequest", b"".join(body[begin:end] for begin, _, end in fields)
        )
        parameters = values_of(found.parameters)
        refuse_sequences(parameters)
        return parameters

    def _input(self, text: bytes) -> Input:
        """An input out of its message; those without values of their own are remembered."""
        known = self._known.get(text)
        if known is not None:
            return known
        tensor = parsed(messages, "InferTensor", text)
        if tensor.name not in self._inputs:
            raise unknown("input", tensor.name, self._inputs, self.model.name)
        number, field = self._inputs[tensor.name]
        shape = tuple(tensor.shape)
        check(field, tensor.datatype, shape)
        contents = tensor.contents if tensor.HasField("contents") else None
        where, place = f"input {tensor.name!r}", None
        if tensor.parameters:
            place = Place.of(where, values_of(tensor.parameters))
        if place is not None and contents is not None:
            raise ValueError(f"{where}: found contents and shared_memory_region, allowed: one.")
        found = Input(number, field, shape, contents, place)
        if contents is None and len(text) <= _LONGEST_KNOWN:
            if len(self._known) >= _MOST_LAYOUTS * len(self._inputs):
                self._known.clear()
            self._known[text] = found
        return found

    def _check_inputs(self, inputs: Sequence[Input]) -> None:
        """Whether each column is there once, all with as many rows."""
        found: set[str] = set()
        for item in inputs:
            name, rows = item.field.name, inputs[0].shape[0]
            if name in found:
                raise ValueError(f"input {name!r}: found twice, allowed: once.")
            if item.shape[0] != rows:
                where = f"input {name!r}, rows"
                raise wrong(where, item.shape[0], f"{rows} as the inputs before")
            found.add(name)
        absent = [name for name in self._inputs if name not in found]
        if absent:
            raise ValueError(
                f"inputs: found no {', '.join(map(repr, absent))}, allowed: each of "
                f"{', '.join(self._inputs)}."
            )

    def _columns(
        self, exchange: Exchange, inputs: Sequence[Input], raw: Sequence[Span]
    ) -> tuple[list[Values], int]:
        """The columns, and the bytes of them that lay in shared memory."""
        columns: list[Values] = [[]] * len(inputs)
        whole, given, beside = memoryview(exchange.body), iter(raw), 0
        for item in inputs:
            if item.place is not None:
                data = read_input(self.service, exchange, item.field.name, item.place, beside)
                columns[item.number] = from_binary(item.field, item.shape, memoryview(data))
                beside += len(data)
            elif item.contents is not None:
                if raw:
                    where = f"input {item.field.name!r}"
                    raise ValueError(f"{where}: found contents and raw contents, allowed: one.")
                columns[item.number] = _typed(item)
            else:
                span = next(given, None)
                if span is None:
                    raise wrong("raw_input_contents", len(raw), _EACH_RAW)
                columns[item.number] = from_binary(item.field, item.shape, whole[span[1] : span[2]])
        if next(given, None) is not None:
            raise wrong("raw_input_contents", len(raw), _EACH_RAW)
        return columns, beside

    def _outputs(
        self, exchange: Exchange, fields: Sequence[Span]
    ) -> tuple[tuple[int, ...], Mapping[int, Place]]:
        """The positions of the outputs that are asked for, and where some of them go."""
        if not fields:
            return self._all, _NOWHERE
        chosen: list[int] = []
        places: dict[int, Place] = {}
        for _, start, end in fields:
            output = parsed(messages, "RequestedOutput", bytes(exchange.body[start:end]))
            if output.name not in self._positions:
                raise unknown("output", output.name, self._positions, self.model.name)
            number, where = self._positions[output.name], f"output {output.name!r}"
            if number in chosen:
                raise ValueError(f"{where}: found twice, allowed: once.")
            chosen.append(number)
            parameters = values_of(output.parameters)
            if "classification" in parameters:
                raise wrong(f"{where}, parameter", "classification", "shared_memory_region")
            place = Place.of(where, parameters)
            if place is not None:
                shared_memory(self.service, exchange).check(where, place, writes=True)
                places[number] = place
        return tuple(chosen), places

    # -- answers -------------------------------------------------------------------------------

    def encode(self, call: Call, outputs: list[Array]) -> tuple[bytes, bytes, bytes]:
        asked: Asked = call.options
        parts = [self._head, asked.identity, self.parameters]
        raws: list[bytes] = []
        for number in asked.outputs:
            array = outputs[number]
            raw = array.tobytes() if self._as_they_are[number] else to_binary(array)
            if number in asked.places:
                parts.append(self._write(number, asked.places[number], array.shape, raw))
                raws.append(_NO_RAW)  # clients count them
                continue
            declared = self._declared[number]
            parts.append(declared.get(array.shape) or self._declare(number, array.shape))
            raws.append(b"\x32%b" % varint(len(raw)))
            raws.append(raw)
        return b"".join(parts + raws), PROTOBUF, b""

    def _write(self, number: int, place: Place, shape: tuple[int, ...], raw: bytes) -> bytes:
        """Put an output into shared memory; gives the field that declares it."""
        assert self.service.shared_memory is not None
        field = self._fields[number]
        self.service.shared_memory.write(f"output {field.name!r}", place, raw)
        output = messages()["InferTensor"](name=field.name, datatype=field.v2, shape=shape)
        output.parameters["shared_memory_region"].string_param = place.region
        output.parameters["shared_memory_byte_size"].int64_param = len(raw)
        if place.offset:
            output.parameters["shared_memory_offset"].int64_param = place.offset
        return chunk(5, output.SerializeToString())

    def _declare(self, number: int, shape: tuple[int, ...]) -> bytes:
        """The field that declares an output of this shape."""
        field, declared = self._fields[number], self._declared[number]
        if len(declared) >= _MOST_LAYOUTS:
            declared.clear()
        sizes = b"".join(map(varint, shape))
        content = chunk(1, field.name.encode()) + chunk(2, field.v2.encode()) + chunk(3, sizes)
        declared[shape] = chunk(5, content)
        return declared[shape]


def after_address(body: bytes | bytearray) -> int:
    """Where a request goes on behind the model's name and version, if these come first.

    Raises:
        MalformedError: it ends within them.
    """
    at = 0
    if body[:1] == b"\x0a":
        at = read_chunk(body, 1)[1]
    if body[at : at + 1] == b"\x12":
        at = read_chunk(body, at + 1)[1]
    return at


def address(body: bytes | bytearray) -> tuple[str, str]:
    """The model's name and version in a request.

    Raises:
        ValueError: it is no message, or says them twice.
    """
    fields, _ = split(body, (_NAME, _VERSION), _MOST_FIELDS)
    found: list[str] = []
    for number, what in ((_NAME, "model_name"), (_VERSION, "model_version")):
        if len(fields[number]) > 1:
            raise ValueError(f"{what}: found twice, allowed: once.")
        found.append("".join(_text(what, body[start:end]) for _, start, end in fields[number]))
    return found[0], found[1]


def id_of(body: bytes | bytearray) -> bytes:
    """The id that a request has, however wrong the rest of it is; empty without one."""
    try:
        fields, _ = split(body, (_ID,), _MOST_FIELDS)
    except MalformedError:
        return b""
    return b"".join(bytes(body[start:end]) for _, start, end in fields[_ID][-1:])


def values_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values, those without one left out."""
    chosen = {name: value.WhichOneof("choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], kind) for name, kind in chosen.items() if kind}


def _typed(item: Input) -> Values:
    """The column in typed contents."""
    field, where = item.field, f"input {item.field.name!r}"
    kind = _CONTENTS[field.v2]
    found = [descriptor.name for descriptor, _ in item.contents.ListFields()]
    if found not in ([], [kind]):
        raise wrong(f"{where}, contents", ", ".join(found), kind)
    values = list(getattr(item.contents, kind))
    size = math.prod(item.shape)
    if len(values) != size:
        raise wrong(f"{where}, {kind}", f"{len(values)} elements", f"{size}")
    if field.dtype == "string":
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise wrong(f"{where}, {kind}", error.object, "UTF-8") from None
    return np.array(values, field.numpy).reshape(item.shape) if field.shape else values


def _text(what: str, data: bytes | bytearray) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise wrong(what, error.object, "UTF-8") from None
