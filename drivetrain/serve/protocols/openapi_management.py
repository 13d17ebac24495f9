"""The routes that tell of a server and manage it, as OpenAPI 3.1."""

from collections.abc import Iterable, Mapping
from typing import Any

Json = dict[str, Any]

_TAG = "Management"
_BYTES: Json = {"type": "integer", "minimum": 0, "maximum": 2**62 - 1}
_REGION: Json = {
    "name": "region",
    "in": "path",
    "required": True,
    "description": "What requests call the region.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"},
}
_ERRORS: Mapping[int, str] = {
    400: "The request is wrong; says where, what was found and what is allowed.",
    403: "Managing is not allowed at this port; says where it is.",
    500: "Some worker could not do it; says which and why.",
    503: "Some worker has not done it in time; says which.",
}

SCHEMAS: Json = {
    "LoadRequest": {
        "type": "object",
        "properties": {"parameters": {"type": ["object", "null"], "maxProperties": 0}},
    },
    "UnloadRequest": {
        "type": "object",
        "properties": {
            "parameters": {
                "type": ["object", "null"],
                "properties": {"unload_dependents": {"type": "boolean"}},
                "additionalProperties": False,
            }
        },
    },
    "Region": {
        "type": "object",
        "required": ["name", "key", "offset", "byte_size"],
        "properties": {
            "name": {"type": "string"},
            "key": {"type": "string"},
            "offset": _BYTES,
            "byte_size": _BYTES,
        },
    },
    "RegisterRequest": {
        "type": "object",
        "required": ["key", "byte_size"],
        "properties": {
            "key": {"type": "string", "pattern": "^/?[A-Za-z0-9._-]{1,250}$"},
            "offset": {**_BYTES, "default": 0},
            "byte_size": {**_BYTES, "minimum": 1},
        },
    },
}
_ENTRIES: Json = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "version", "state", "reason"],
        "properties": {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "state": {"enum": ["READY", "UNAVAILABLE"]},
            "reason": {"type": "string"},
        },
    },
}
_STATISTICS: Json = {
    "type": "object",
    "required": ["model_stats"],
    "properties": {"model_stats": {"type": "array", "items": {"type": "object"}}},
}
_LISTING: Json = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
_REGIONS: Json = {"type": "array", "items": {"$ref": "#/components/schemas/Region"}}
_NONE: Json = {"type": "object"}


def reading() -> Json:
    """The routes that tell of all models, which every port has."""
    return {
        "/v2/models/stats": {
            "get": _operation("statistics", "What each version has done", _STATISTICS, "Server")
        },
        "/v2/repository/index": {
            "post": _operation("index", "Which aliases are loaded", _ENTRIES, "Server", _LISTING)
        },
    }


def managing(names: Iterable[str]) -> Json:
    """The routes that manage.

    Args:
        names: the aliases that may be loaded and unloaded.
    """
    paths: Json = {}
    for name in names:
        path = f"/v2/repository/models/{name}"
        load, unload = ({"$ref": f"#/components/schemas/{k}Request"} for k in ("Load", "Unload"))
        paths[f"{path}/load"] = {
            "post": _operation(f"{name}.load", "Ask the alias again, and load it", _NONE, body=load)
        }
        paths[f"{path}/unload"] = {
            "post": _operation(f"{name}.unload", "Take no more requests", _NONE, body=unload)
        }
    for path, suffix, parameters in (
        ("/v2/systemsharedmemory", "", []),
        ("/v2/systemsharedmemory/region/{region}", "Of", [_REGION]),
    ):
        of = {"parameters": parameters} if parameters else {}
        paths[f"{path}/status"] = {
            "get": _operation(f"memoryStatus{suffix}", "What is registered", _REGIONS) | of
        }
        paths[f"{path}/unregister"] = {
            "post": _operation(f"memoryUnregister{suffix}", "Let go of it", _NONE) | of
        }
        if parameters:
            register = {"$ref": "#/components/schemas/RegisterRequest"}
            paths[f"{path}/register"] = {
                "post": _operation("memoryRegister", "Open a region", _NONE, body=register) | of
            }
    return paths


def _operation(
    operation: str, summary: str, answer: Json, tag: str = _TAG, body: Json | None = None
) -> Json:
    """An operation; its body may be left out unless it registers."""
    error = {"$ref": "#/components/schemas/Error"}
    errors = _ERRORS if tag == _TAG or body else {}
    found: Json = {
        "operationId": operation,
        "summary": summary,
        "tags": [tag],
        "responses": {
            "200": {"description": "Done.", "content": _content(answer)},
            **{
                str(code): {"description": text, "content": _content(error)}
                for code, text in errors.items()
            },
        },
    }
    if body is not None:
        found["requestBody"] = {
            "required": operation == "memoryRegister",
            "content": _content(body),
        }
    return found


def _content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
