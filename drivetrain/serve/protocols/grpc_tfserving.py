"""TensorFlow Serving's gRPC services: predict, a model's signature and its status.

A version here is a digest, and a version there is an integer. So a version's number is the value of
its twelve hexadecimal digits, the same for ever and on every server; requests may also name the
digits themselves, as ``version_label``.

Source: https://github.com/tensorflow/serving (prediction_service.proto, model_service.proto).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from drivetrain.core.batch import Array
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import Field
from drivetrain.serve.execution.columns import Rows, Values
from drivetrain.serve.execution.models import Model
from drivetrain.serve.protocols.calls import Call, Route, Series, Service
from drivetrain.serve.protocols.grpc_method import (
    PROTOBUF,
    Answer,
    Method,
    Served,
    found,
    parsed,
    refuse,
    unimplemented,
)
from drivetrain.serve.protocols.messages_tfs import messages
from drivetrain.serve.protocols.tfs_tensors import DTYPES, TensorWriter, column_of_tensor
from drivetrain.serve.protocols.timeouts import header_timeout
from drivetrain.serve.protocols.wire import chunk, integer, read_chunk, split
from drivetrain.serve.transport.exchange import Exchange

SIGNATURE = "serving_default"
_PREDICTION = "/tensorflow.serving.PredictionService/"
_MODEL = "/tensorflow.serving.ModelService/"
_METHOD = "tensorflow/serving/predict"
_TYPE_URL = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
_AVAILABLE = 30
_MOST_FIELDS = 1 << 16
_MOST_SPECS = 1024


def version_number(version: str) -> int:
    """The number of a version: its hexadecimal digits as an integer, below 2⁴⁸."""
    return int(version, 16)


class TfsPredictRoute(Route):
    """``tensorflow.serving.PredictionService/Predict``.

    Inputs are the bundle's raw columns, each ``[rows]`` or ``[rows, 1]``, or with the column's own
    shape behind the rows.
    """

    name = "tfs_grpc"

    def __init__(self, model: Model, service: Service) -> None:
        super().__init__(model, service)
        self._inputs = {field.name: (n, field) for n, field in enumerate(model.inputs)}
        self._shaped = any(field.shape for field in model.inputs)
        self._positions = {name: number for number, name in enumerate(model.outputs)}
        self._writers = [TensorWriter(field) for field in model.bundle.manifest.outputs]
        version = integer(1, version_number(model.version))
        spec = chunk(1, model.name.encode()) + chunk(2, version) + chunk(3, SIGNATURE.encode())
        self._spec = chunk(2, spec)

    def decode(self, exchange: Exchange) -> Call:
        request = parsed(messages, "PredictRequest", bytes(exchange.body))
        signature = request.model_spec.signature_name
        if signature not in ("", SIGNATURE):
            raise wrong("signature_name", signature, SIGNATURE)
        columns, rows = self._columns(request.inputs)
        asked = self._outputs(request.output_filter)
        return Call(self, exchange, columns, rows, timeout=header_timeout(exchange), options=asked)

    def _columns(self, inputs: Mapping[str, Any]) -> tuple[Sequence[Values], int]:
        columns: list[Values] = [[]] * len(self._inputs)
        rows = 0
        for name in inputs:
            if name not in self._inputs:
                raise unknown("input", name, self._inputs, self.model.name)
        absent = [name for name in self._inputs if name not in inputs]
        if absent:
            raise ValueError(
                f"inputs: found no {', '.join(map(repr, absent))}, allowed: each of "
                f"{', '.join(self._inputs)}."
            )
        for name, (number, field) in self._inputs.items():
            columns[number], count = column_of_tensor(field, inputs[name])
            if rows and count != rows:
                raise wrong(f"input {name!r}, rows", count, f"{rows} as the inputs before")
            if not rows:  # now, for a few bytes may stand for many rows of each input
                self.check_rows(count)
            rows = count
        if rows == 1 and not self._shaped:
            return Rows([tuple([c[0] if isinstance(c, list) else c.item() for c in columns])]), 1
        return columns, rows

    def _outputs(self, names: Sequence[str]) -> list[str]:
        if not names:
            return self.model.outputs
        for number, name in enumerate(names):
            if name not in self._positions:
                raise unknown("output", name, self._positions, self.model.name)
            if name in names[:number]:
                raise ValueError(f"output_filter: found {name!r} twice, allowed: once.")
        return list(names)

    def encode(self, call: Call, outputs: list[Array]) -> tuple[bytes, bytes, bytes]:
        parts: list[bytes] = []
        for name in call.options:
            number = self._positions[name]
            tensor = self._writers[number].write(outputs[number])
            parts.append(chunk(1, chunk(1, name.encode()) + chunk(2, tensor)))
        return b"".join((*parts, self._spec)), PROTOBUF, b""


class TensorflowServing:
    """The services' methods.

    Args:
        served: what answers.
        service: what every call needs.
    """

    def __init__(self, served: Served, service: Service) -> None:
        self._served = served
        self._other = Series(service, "", "", TfsPredictRoute.name)
        self._specs: dict[bytes, tuple[str, str]] = {}
        status = Series(service, "", "", "tfs_grpc_status")
        none = "found a method of tf.Example, allowed: Predict with tensors."
        self.unary: Mapping[str, Answer] = {
            f"{_PREDICTION}Predict": self._predict,
            f"{_PREDICTION}GetModelMetadata": Method(
                status, messages, "GetModelMetadataRequest", self._metadata
            ),
            **{
                f"{_PREDICTION}{name}": unimplemented(status, f"{name}: {none}")
                for name in ("Classify", "Regress", "MultiInference")
            },
            f"{_MODEL}GetModelStatus": Method(
                status, messages, "GetModelStatusRequest", self._status
            ),
            f"{_MODEL}HandleReloadConfigRequest": unimplemented(
                status, "HandleReloadConfigRequest: what is served is what the aliases mean."
            ),
        }

    def _predict(self, exchange: Exchange) -> None:
        try:
            name, version = self._address(exchange.body)
            answer = found(lambda: self._served.route(TfsPredictRoute.name, name, version))
        except Exception as error:
            refuse(self._other, exchange, error)
            return
        answer(exchange)

    def _address(self, body: bytes | bytearray) -> tuple[str, str]:
        """The name and the version in a request's ``model_spec``, which is most often the first
        field and most often the one that was seen before."""
        if body[:1] == b"\x0a":
            start, end = read_chunk(body, 1)
        else:
            spans = split(body, (1,), _MOST_FIELDS)[0][1]
            _, start, end = spans[-1] if spans else (0, 0, 0)
        text = bytes(body[start:end])
        known = self._specs.get(text)
        if known is None:
            known = _named(parsed(messages, "ModelSpec", text))
            if len(self._specs) >= _MOST_SPECS:
                self._specs.clear()
            if len(text) <= _MOST_SPECS:
                self._specs[text] = known
        return known

    def _models(self, spec: Any) -> list[Model]:
        """The versions that a ``model_spec`` means: one, or without a version all."""
        name, version = _named(spec)
        found(lambda: self._served.route(TfsPredictRoute.name, name, version))
        models = self._served.releases[name].models
        return [model for model in models if version in ("", model.version)]

    def _metadata(self, request: Any) -> Any:
        for asked in request.metadata_field or [""]:
            if asked != "signature_def":
                raise wrong("metadata_field", asked, "signature_def")
        model = self._models(request.model_spec)[0]
        kinds = messages()
        signature = kinds["SignatureDef"](method_name=_METHOD)
        for place, fields in (
            (signature.inputs, model.inputs),
            (signature.outputs, model.bundle.manifest.outputs),
        ):
            for field in fields:
                _describe(place[field.name], field)
        signatures = kinds["SignatureDefMap"]()
        signatures.signature_def[SIGNATURE].CopyFrom(signature)
        answer = kinds["GetModelMetadataResponse"]()
        answer.model_spec.name = model.name
        answer.model_spec.version.value = version_number(model.version)
        answer.metadata["signature_def"].type_url = _TYPE_URL
        answer.metadata["signature_def"].value = signatures.SerializeToString()
        return answer

    def _status(self, request: Any) -> Any:
        answer = messages()["GetModelStatusResponse"]()
        for model in self._models(request.model_spec):
            status = answer.model_version_status.add()
            status.version, status.state = version_number(model.version), _AVAILABLE
            status.status.error_code = 0
        return answer


def _named(spec: Any) -> tuple[str, str]:
    """The name and the version, empty for the alias' own."""
    choice = spec.WhichOneof("choice")
    if choice == "version_label":
        return spec.name, spec.version_label
    return spec.name, f"{spec.version.value:012x}" if choice else ""


def _describe(info: Any, field: Field) -> None:
    info.name = f"{SIGNATURE}_{field.name}:0"
    info.dtype = DTYPES[field.dtype]
    for size in (None, *field.shape):
        info.tensor_shape.dim.add(size=-1 if size is None else size)
