"""Reads bodies and queries into structs; what is wrong with them is said in words that name the field."""

from __future__ import annotations

import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from geres.errors import GeresError, Invalid, NotUnderstood

T = TypeVar("T")
_PATH = re.compile(r"^(.*?) - at `(.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)
_NUMBER_FOR_TEXT = re.compile(r"^Expected `str( \| null)?`, got `(int|float)`$")
_MISSING = re.compile(r"^Object missing required field `(.*)`$")

encode = msgspec.json.Encoder().encode
_decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {}


def decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """The prebuilt decoder of a struct."""
    if kind not in _decoders:
        _decoders[kind] = msgspec.json.Decoder(kind)
    return _decoders[kind]


def read_body(kind: type[T], body: bytes) -> T:
    """The body as `kind`.  Raises NotUnderstood where it is no JSON, Invalid naming the field."""
    if not body:
        raise NotUnderstood("the request has no body; send a JSON object")
    if rb"\u0000" in body:
        _refuse_nul(body)
    try:
        return decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        raise wrong_field(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotUnderstood(f"the body is no JSON: {error}") from None


def _refuse_nul(body: bytes) -> None:
    """Raise Invalid naming the text that holds a NUL: no argv and no database takes it."""
    try:
        parts: list[tuple[str, Any]] = [("", msgspec.json.decode(body))]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # the caller says what is wrong
    while parts:
        path, value = parts.pop()
        if isinstance(value, dict):
            parts += [(_joined(path, repr(key) if "\0" in key else key), one) for key, one in value.items()]
            parts += [(_joined(path, repr(key)), key) for key in value if "\0" in key]
        elif isinstance(value, list):
            parts += [(f"{path}[{position}]", one) for position, one in enumerate(value)]
        elif isinstance(value, str) and "\0" in value:
            text = f"{path}: {value[:80]!r} holds a NUL character, which no system takes"
            raise Invalid(text, field=path)


def read_query(kind: type[T], query: bytes) -> T:
    """The query string as `kind`, whose fields are texts, numbers and switches.

    Raises Invalid naming the parameter, for unknown ones too: a misspelt filter must not widen a list.
    """
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
        for name, value in pairs:
            if "\0" in value:
                raise Invalid(f"{name}: cannot hold a NUL character", field=name)
        return msgspec.convert(dict(pairs), kind, strict=False)
    except msgspec.ValidationError as error:
        raise wrong_field(error, what="parameter") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise NotUnderstood(f"the query cannot be read: {error}") from None


def wrong_field(error: msgspec.ValidationError, *, what: str = "field", before: str = "") -> Invalid:
    """msgspec's complaint in our words, with the field's path.  `before` goes before the path."""
    text, path = str(error), ""
    if match := _PATH.match(text):
        text, path = match[1], match[2].removeprefix("$").removeprefix(".")
    if match := _UNKNOWN.match(text):
        field = _joined(before, path, match[1])
        return Invalid(f"{field}: there is no such {what}", field=field)
    if match := _MISSING.match(text):
        field = _joined(before, path, match[1])
        return Invalid(f"{field}: is missing", field=field)
    field = _joined(before, path)
    if _NUMBER_FOR_TEXT.match(text):
        text = "is a number where a text is wanted: write it in quotes"
    return Invalid(f"{field or 'the body'}: {text}", field=field)


def _joined(*parts: str) -> str:
    return ".".join(part.strip(".") for part in parts if part)


def error_body(error: GeresError) -> bytes:
    """`{"error": {"code", "message", "facts"}}`."""
    facts: dict[str, Any] = error.facts
    return encode({"error": {"code": error.code, "message": str(error), "facts": facts}})
