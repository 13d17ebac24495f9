"""The route by which observations come, as OpenAPI 3.1."""

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

_COUNT: Json = {"type": "integer", "minimum": 0}
_ERRORS: Mapping[int, str] = {
    400: "The request is wrong; says where, what was found and what is allowed.",
    413: "The body is too long.",
    503: "Nothing can be kept for now; says why. Retry-After says when to try again.",
}


def observing(name: str, values: Mapping[str, Json], needs: Sequence[Sequence[str]]) -> Json:
    """The paths by which an alias with windows or a learner is told what was observed.

    Args:
        name: the alias.
        values: the schema of a value of each column that is observed.
        needs: of which a row must have all columns of at least one.
    """
    reference = f"#/components/schemas/{name}."
    errors = {
        str(code): {"description": text, "content": _content("#/components/schemas/Error")}
        for code, text in _ERRORS.items()
    }
    row = {"$ref": f"{reference}Observation"}
    example = {"rows": [dict.fromkeys(min(needs, key=len))]}
    body = {"oneOf": [row, {"$ref": f"{reference}Observations"}]}
    post = {
        "operationId": f"{name}.observe",
        "summary": "Tell what was observed, for the windows of later rows and for what learns",
        "tags": [name],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body, "example": example}},
        },
        "responses": {
            "200": {"description": "It is kept.", "content": _content(f"{reference}Observed")},
            **errors,
        },
    }
    get = {
        "operationId": f"{name}.observed",
        "summary": "How far each source was read, and what is kept",
        "tags": [name],
        "responses": {
            "200": {"description": "The answer.", "content": _content(f"{reference}Kept")},
            "503": errors["503"],
        },
    }
    return {f"/observe/{name}": {"post": post, "get": get}}


def schemas(name: str, values: Mapping[str, Json], needs: Sequence[Sequence[str]]) -> Json:
    """The schemas of :func:`observing`, which has the same arguments."""
    row = {"$ref": f"#/components/schemas/{name}.Observation"}
    source = {"type": "string", "minLength": 1, "maxLength": 256}
    offset = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
    counts = dict.fromkeys(("observed", "late", "missing", "ignored"), _COUNT)
    return {
        f"{name}.Observation": {
            "type": "object",
            "properties": dict(values),
            "additionalProperties": False,
            "anyOf": [{"required": list(columns)} for columns in needs],
        },
        f"{name}.Observations": {
            "type": "object",
            "required": ["rows"],
            "properties": {
                "rows": {"type": "array", "minItems": 1, "items": row},
                "source": source,
                "offset": offset,
            },
            "dependentRequired": {"source": ["offset"], "offset": ["source"]},
            "additionalProperties": False,
        },
        f"{name}.Observed": {
            "type": "object",
            "required": list(counts),
            "properties": {**counts, "durable": {"type": "boolean"}},
        },
        f"{name}.Kept": {
            "type": "object",
            "required": ["columns", "positions"],
            "properties": {
                "columns": {"type": "array", "items": {"type": "string"}},
                "positions": {"type": "object", "additionalProperties": offset},
                "keys": _COUNT,
                "bytes": _COUNT,
                "watermark": {"type": ["integer", "null"]},
                "learner": {
                    "type": ["object", "null"],
                    "additionalProperties": {"type": "number"},
                },
                "durable": {"type": "boolean"},
            },
        },
    }


def _content(reference: str) -> Json:
    return {"application/json": {"schema": {"$ref": reference}}}
