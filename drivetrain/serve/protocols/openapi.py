"""What the server offers, as OpenAPI 3.1 and as a page: made of the manifests that it serves.

Source: https://spec.openapis.org/oas/v3.1.0; its schemas are JSON Schema, draft 2020-12.
"""

import html
import json
from collections.abc import Iterable, Mapping
from typing import Any

from drivetrain.core.schema import Field, Schema
from drivetrain.serve.execution.filling import observed_by
from drivetrain.serve.execution.models import Model
from drivetrain.serve.protocols import openapi_observing
from drivetrain.serve.protocols.openapi_management import SCHEMAS, managing, reading

Json = dict[str, Any]


def _within(bits: int, signed: bool = True) -> Json:
    """The bounds of an integer of so many bits: a number beyond them is refused."""
    least = -(2 ** (bits - 1)) if signed else 0
    return {"minimum": least, "maximum": least + 2**bits - 1}


_MONTHS = (
    r"(0[13578]|1[02])-(0[1-9]|[12]\d|3[01])",
    r"(0[469]|11)-(0[1-9]|[12]\d|30)",
    r"02-(0[1-9]|1\d|2[0-8])",
)
_LEAP_DAY = r"(\d\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29"
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d"
_MOMENT = (
    rf"^(?!0|9999)(\d{{4}}-({'|'.join(_MONTHS)})|{_LEAP_DAY})"
    rf"([T ]{_CLOCK}(:[0-5]\d(\.\d{{1,6}})?)?(Z|[+-]{_CLOCK})?)?$"
).replace(r"\d", "[0-9]")
"""A day of the calendar, and the time on it if any: what every client can write and read."""
_ERROR: Json = {"$ref": "#/components/schemas/Error"}
_HEADERS: list[Json] = [
    {
        "name": "x-request-id",
        "in": "header",
        "description": "Names the request in the answer, the log and the feedback.",
        "schema": {"type": "string", "maxLength": 256, "pattern": "^[!-~]+$"},
    },
    {
        "name": "x-timeout-ms",
        "in": "header",
        "description": "How long the client waits; what has not begun by then is not computed.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
]
_ERRORS: Mapping[int, str] = {
    400: "The request is wrong; says where, what was found and what is allowed.",
    413: "The body is too long.",
    503: "Too much waits already; Retry-After says when to try again.",
    504: "The time that the client gave was over before the run began.",
}
_ELEMENT: Mapping[str, tuple[list[str], Json]] = {
    "string": (["string"], {}),
    "bytes": (["string"], {"contentEncoding": "base64"}),
    "bool": (["boolean"], {}),
    "timestamp": (
        ["string", "integer"],
        {
            "description": "ISO 8601, or microseconds since 1970-01-01 in UTC",
            "pattern": _MOMENT,
            **_within(64),
        },
    ),
    "float16": (["number"], {"format": "float"}),
    "float32": (["number"], {"format": "float"}),
    "float64": (["number"], {"format": "double"}),
    **{
        f"{sign}int{bits}": (
            ["integer"],
            {"format": f"{sign}int{bits}", **_within(bits, signed=not sign)},
        )
        for bits in (8, 16, 32, 64)
        for sign in ("", "u")
    },
}
_EXAMPLE: Mapping[str, Any] = {
    "string": "text",
    "bytes": "",
    "bool": True,
    "timestamp": "2026-01-31T12:30:00",
}
_V2_JSON: Mapping[str, list[str]] = {"BYTES": ["string"], "BOOL": ["boolean"]}


def document(
    models: Iterable[Model], version: str, token: bool, loadable: Iterable[str] = ()
) -> Json:
    """The OpenAPI document of a server.

    Args:
        models: what is served now.
        version: the server's.
        token: whether clients must bring one.
        loadable: the aliases that may be loaded and unloaded, where that is allowed.
    """
    paths: Json = {
        "/v2": {"get": _get("serverMetadata", "What this server is", "Server")},
        "/v2/health/live": {"get": _get("serverLive", "Whether the process lives", "Server")},
        "/v2/health/ready": {
            "get": _get("serverReady", "Whether requests are taken", "Server", {503: "Not now."})
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "Counters and histograms for Prometheus",
                "tags": ["Server"],
                "responses": {
                    "200": {
                        "description": "Text format 0.0.4.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    }
                },
            }
        },
    }
    schemas: Json = {
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {"error": {"type": "string"}},
        },
        "PredictAnswer": {
            "type": "object",
            "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}],
            "properties": {
                "predictions": {"type": "array"},
                "outputs": {"type": ["array", "object"]},
            },
        },
    }
    for model in models:
        paths.update(_paths(model))
        schemas.update(_schemas(model))
        if fed := model.fed:
            values = {field.name: _value(field) for field in observed_by(fed)}
            observed = (model.name, values, [each.columns for each in fed])
            paths.update(openapi_observing.observing(*observed))
            schemas.update(openapi_observing.schemas(*observed))
    paths.update(reading())
    if loadable:
        paths.update(managing(loadable))
        schemas.update(SCHEMAS)
    found: Json = {
        "openapi": "3.1.0",
        "info": {"title": "drivetrain", "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if token:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"token": []}]
        _say_who_may_ask(paths)
    return found


def _say_who_may_ask(paths: Json) -> None:
    """Without a token the health checks are answered, and the rest is refused."""
    for path, methods in paths.items():
        for operation in methods.values():
            if path in ("/v2/health/live", "/v2/health/ready"):
                operation["security"] = []
            else:
                refused = {"description": "No valid token came.", "content": _content(_ERROR)}
                operation["responses"]["401"] = refused


def _paths(model: Model) -> Json:
    name = model.name
    base, reference = f"/v2/models/{name}", f"#/components/schemas/{name}."
    paths: Json = {
        f"/predict/{name}": {
            "post": _post(
                f"{name}.predict", f"Predictions of {name} for rows", name,
                {"oneOf": [{"$ref": f"{reference}Row"}, {"$ref": f"{reference}Rows"}]},
                f"{reference}Predictions",
                {"rows": [{field.name: _example(field) for field in model.inputs}]},
            )
        }
    }  # fmt: skip
    for path, suffix in ((base, ""), (f"{base}/versions/{model.version}", ".version")):
        paths[path] = {"get": _get(f"{name}{suffix}.metadata", "Inputs and outputs", name)}
        paths[f"{path}/config"] = {"get": _get(f"{name}{suffix}.config", "How it is set up", name)}
        paths[f"{path}/stats"] = {"get": _get(f"{name}{suffix}.stats", "What it has done", name)}
        paths[f"{path}/ready"] = {"get": _get(f"{name}{suffix}.ready", "Whether it serves", name)}
        paths[f"{path}/infer"] = {
            "post": _post(
                f"{name}{suffix}.infer",
                "Open Inference Protocol V2; binary tensors by its extension",
                name,
                {"$ref": f"{reference}InferRequest"},
                f"{reference}InferAnswer",
            )
        }
    base = f"/v1/models/{name}"
    for path, suffix in ((base, ""), (f"{base}/versions/{model.version}", ".version")):
        paths[path] = {"get": _get(f"{name}{suffix}.status", "Which version is served", name)}
        paths[f"{path}:predict"] = {
            "post": _post(
                f"{name}{suffix}.tfsPredict",
                "TensorFlow Serving's predict, by rows or by columns",
                name,
                {"$ref": f"#/components/schemas/{name}.PredictRequest"},
                "#/components/schemas/PredictAnswer",
            )
        }
    return paths


def _get(operation: str, summary: str, tag: str, others: Mapping[int, str] | None = None) -> Json:
    answer = {"description": "The answer.", "content": _content({"type": "object"})}
    more = {
        str(code): {"description": text, "content": _content({"type": "object"})}
        for code, text in (others or {}).items()
    }
    return {
        "operationId": operation,
        "summary": summary,
        "tags": [tag],
        "responses": {"200": answer, **more},
    }


def _post(
    operation: str, summary: str, tag: str, body: Json, answer: str, example: Json | None = None
) -> Json:
    content = _content(body)
    if example is not None:
        content["application/json"]["example"] = example
    errors = {
        str(code): {"description": text, "content": _content(_ERROR)}
        for code, text in _ERRORS.items()
    }
    good = {"description": "The predictions.", "content": _content({"$ref": answer})}
    return {
        "operationId": operation,
        "summary": summary,
        "tags": [tag],
        "parameters": _HEADERS,
        "requestBody": {"required": True, "content": content},
        "responses": {"200": good, **errors},
    }


def _content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


# -- schemas ---------------------------------------------------------------------------------------


def _schemas(model: Model) -> Json:
    name, inputs, outputs = model.name, model.inputs, model.bundle.manifest.outputs
    row = _object({field.name: _value(field) for field in inputs})
    prediction = _object({field.name: _value(field, given=False) for field in outputs})
    reference = f"#/components/schemas/{name}."
    return {
        f"{name}.Row": row,
        f"{name}.Rows": _object(
            {"rows": {"type": "array", "minItems": 1, "items": {"$ref": f"{reference}Row"}}}
        ),
        f"{name}.Predictions": _object(
            {
                "model": {"const": name},
                "version": {"type": "string"},
                "predictions": {"type": "array", "items": prediction},
            }
        ),
        f"{name}.PredictRequest": _predict_request(inputs, {"$ref": f"{reference}Row"}),
        f"{name}.InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string", "maxLength": 256},
                "parameters": {"type": "object"},
                "inputs": _each_once(inputs),
                "outputs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {"name": {"enum": list(outputs.names)}},
                    },
                },
            },
        },
        f"{name}.InferAnswer": {
            "type": "object",
            "required": ["model_name", "model_version", "outputs"],
            "properties": {
                "model_name": {"const": name},
                "model_version": {"type": "string"},
                "id": {"type": "string"},
                "outputs": _tensors(outputs, 1),
            },
        },
    }


def _predict_request(inputs: Schema, row: Json) -> Json:
    """By rows or by columns; where there is one column it may stand without its name."""
    values = {field.name: _marked(field) for field in inputs}
    rows = _object(values) if any(field.dtype == "bytes" for field in inputs) else row
    columns: Json = {
        name: {"type": "array", "minItems": 1, "items": values[name]} for name in values
    }
    by_columns = _object(columns)
    if len(values) == 1:
        (only,) = values
        rows = {"anyOf": [rows, values[only]]}
        by_columns = {"anyOf": [by_columns, columns[only]]}
    return {
        "type": "object",
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
        "properties": {
            "signature_name": {"enum": ["serving_default", "", None]},
            "instances": {"type": "array", "minItems": 1, "items": rows},
            "inputs": by_columns,
        },
        "additionalProperties": False,
    }


def _marked(field: Field) -> Json:
    """One value of TensorFlow Serving's: bytes are text, or base64 that is marked."""
    if field.dtype != "bytes":
        return _value(field)
    return {"anyOf": [{"type": ["string", "null"]}, _object({"b64": {"type": "string"}})]}


def _each_once(inputs: Schema) -> Json:
    """Every input's tensor, in any order; its data stands in it, or its parameters say where."""
    whole = [{**_tensor(f), "anyOf": [{"required": [k]} for k in ("data", "parameters")]}
             for f in inputs]  # fmt: skip
    named = [{"contains": {"properties": {"name": {"const": f.name}}}} for f in inputs]
    count = len(inputs)
    return {
        "type": "array", "minItems": count, "maxItems": count, "items": {"anyOf": whole},
        "allOf": named,
    }  # fmt: skip


def _object(properties: Json) -> Json:
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def _value(field: Field, given: bool = True) -> Json:
    """One value in a row: null is missing, and lists hold what has a shape.

    Where a client gives a number, a boolean is taken as 0 or 1, as events hold it.
    """
    types, more = _ELEMENT[field.dtype]
    also = ["boolean"] if given and types[0] in ("integer", "number") else []
    found: Json = {"type": [*types, *also, "null"], **more}
    for size in reversed(field.shape):
        found = {"type": "array", "items": found}
        if size is not None:
            found |= {"minItems": size, "maxItems": size}
    if field.shape and None not in field.shape:
        found["type"] = ["array", "null"]
    return found


def _tensors(schema: Schema, least: int) -> Json:
    return {"type": "array", "minItems": least, "items": {"anyOf": [_tensor(f) for f in schema]}}


def _tensor(field: Field) -> Json:
    number = "integer" if "INT" in field.v2 else "number"
    types = _V2_JSON.get(field.v2, [number])
    rank = 1 + len(field.shape)
    most = rank if field.shape else 2
    return {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"const": field.name},
            "datatype": {"const": field.v2},
            "shape": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1},
                "minItems": rank,
                "maxItems": most,
            },
            "data": {"type": "array", "items": {"type": [*types, "null", "array"]}},
            "parameters": {"type": "object"},
        },
    }


def _example(field: Field) -> Any:
    found = _EXAMPLE.get(field.dtype, 0 if "int" in field.dtype else 0.5)
    for size in reversed(field.shape):
        found = [found] * (size or 1)
    return found


# -- the page --------------------------------------------------------------------------------------

PAGE_HEADERS = (
    b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{font:13px/1.45 ui-monospace,monospace}pre{background:#8881;padding:.8rem;"
    "overflow:auto}summary{cursor:pointer}b{display:inline-block;min-width:3.2rem}"
    ":root{color-scheme:light dark}"
)


def page(found: Json) -> bytes:
    """The document as one page: no script, and nothing from elsewhere."""
    parts: list[str] = []
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            shown = (
                f"<details><summary><b>{method.upper()}</b><code>{html.escape(path)}</code> "
                f"{html.escape(operation['summary'])}</summary>"
            )
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in body:
                shown += f"<p>For example</p>{_pre(body['example'])}"
            parts.append(f"{shown}{_pre(operation['responses'])}</details>")
    schemas = "".join(
        f"<details><summary><code>{html.escape(name)}</code></summary>{_pre(schema)}</details>"
        for name, schema in found["components"]["schemas"].items()
    )
    title = html.escape(f"{found['info']['title']} {found['info']['version']}")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        f'<p>As OpenAPI 3.1: <a href="openapi.json">openapi.json</a></p>'
        f"<h2>Routes</h2>{''.join(parts)}<h2>Schemas</h2>{schemas}</html>"
    ).encode()


def _pre(data: Any) -> str:
    return f"<pre>{html.escape(json.dumps(data, indent=1, ensure_ascii=False))}</pre>"
