"""The OpenAPI document: what the framework says of its routes, completed with what it does not know.

That is: the query parameters (our own structs), the hot routes (see front.py), the errors, the token, and
that unknown fields of bodies are refused.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

_REF = "#/components/schemas/{name}"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class HotRoute(NamedTuple):
    """What the document says of a route that front.py answers."""

    method: str
    path: str  #: with {parameters}
    function: Any
    query: type[Struct] | None
    body: type[Struct] | None
    answers: dict[int, Any]
    headers: tuple[str, ...] = ()


class ErrorBody(Struct):
    code: str
    message: str
    facts: dict[str, Any]


class Error(Struct):
    """What every refusal looks like."""

    error: ErrorBody


def complete(
    document: dict[str, Any],
    queries: dict[tuple[str, str], type[Struct]],
    hot: Iterable[HotRoute],
    bodies: Iterable[type[Struct]],
) -> dict[str, Any]:
    """The whole document as plain JSON values.  `queries` is by method and path, `bodies` are strict."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document, enc_hook=_plain))
    components = plain.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for route in hot:
        kinds = [kind for kind in (route.body, *route.answers.values()) if kind is not None]
        refs, more = msgspec.json.schema_components(kinds, ref_template=_REF)
        schemas.update(more)
        operation = _hot_operation(route, dict(zip(map(_name, kinds), refs, strict=True)))
        plain["paths"].setdefault(route.path, {})[route.method] = operation
    for (method, path), query in queries.items():
        operation = plain["paths"][path][method]
        operation["parameters"] = operation.get("parameters", []) + _parameters(query, schemas)
    _add_strict(bodies, schemas)
    _add_errors(plain, schemas)
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    plain["security"] = [{"token": []}]
    plain["paths"] = dict(sorted(plain["paths"].items()))
    for path in ("/healthz", "/readyz"):
        plain["paths"][path]["get"]["security"] = []
    return plain


def _name(kind: Any) -> str:
    return _UNSAFE.sub("_", getattr(kind, "__name__", str(kind)))


def _plain(value: Any) -> Any:
    if isinstance(value, Struct):
        return msgspec.structs.asdict(value)
    return str(value)


def _hot_operation(route: HotRoute, refs: dict[str, Any]) -> dict[str, Any]:
    about = inspect.getdoc(route.function) or ""
    summary, _, rest = about.partition("\n")
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    parameters += [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
        for name in route.headers
    ]
    operation: dict[str, Any] = {
        "operationId": route.function.__name__,
        "summary": summary,
        "description": rest.strip() or summary,
        "parameters": parameters,
        "responses": {
            str(status): {
                "description": "What was asked for.",
                "content": {"application/json": {"schema": refs[_name(kind)]}},
            }
            for status, kind in route.answers.items()
        },
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": refs[_name(route.body)]}},
        }
    return operation


def _parameters(query: type[Struct], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of a query as parameters.  They are all optional and plain."""
    (_,), found = msgspec.json.schema_components([query], ref_template=_REF)
    schema = found.pop(query.__name__)
    schemas.update(found)
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _without_null(field)}
        for name, field in schema["properties"].items()
    ]


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """A query has no null: a parameter that may be None may be left out."""
    kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
    plain = kinds[0] if len(kinds) == 1 else field
    return {key: value for key, value in plain.items() if key != "default" or value is not None}


def _add_strict(bodies: Iterable[type[Struct]], schemas: dict[str, Any]) -> None:
    """Say of every struct that refuses unknown fields that it does."""
    _, known = msgspec.json.schema_components(list(bodies), ref_template=_REF)
    for name, schema in known.items():
        if schema.get("additionalProperties") is False and name in schemas:
            schemas[name]["additionalProperties"] = False


def _add_errors(document: dict[str, Any], schemas: dict[str, Any]) -> None:
    (ref,), found = msgspec.json.schema_components([Error], ref_template=_REF)
    schemas.update(found)
    for operations in document["paths"].values():
        for operation in operations.values():
            responses = operation.setdefault("responses", {})
            for status in [status for status in responses if status.startswith(("4", "5"))]:
                del responses[status]
            responses["default"] = {
                "description": "A refusal: one sentence for people, a code for programs.",
                "content": {"application/json": {"schema": ref}},
            }
