"""The request as routes see it, and the answers that are not plain structs."""

from __future__ import annotations

from typing import Any, cast

import litestar
from litestar import Response
from litestar.datastructures import State

from geres.api.bodies import encode, read_body
from geres.api.context import Context
from geres.errors import Invalid
from geres.model.callers import Caller


class Request(litestar.Request[Any, Any, State]):
    """Bodies are read with our own decoders: strictly, raw JSON kept raw, every refusal in our words."""

    @property
    def context(self) -> Context:
        return cast("Context", self.app.state.context)

    @property
    def caller(self) -> Caller:
        return cast("Caller", self.scope["state"]["caller"])

    @property
    def idempotency_key(self) -> str | None:
        return self.headers.get("idempotency-key")

    @property
    def if_match(self) -> int | None:
        """The version that If-Match names; None for any.  Raises Invalid."""
        text = self.headers.get("if-match")
        if text is None or text.strip() == "*":
            return None
        number = text.strip().removeprefix("W/").strip('"')
        if not (number.isascii() and number.isdigit() and len(number) < 19):
            raise Invalid(
                f"If-Match: {text!r} is no version; send the ETag that it came with", field="If-Match"
            )
        return int(number)

    async def json(self) -> Any:
        field = self.route_handler.parsed_data_field
        assert field is not None, "only routes with a body read it"
        return read_body(field.annotation, await self.body())


def answer(content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response[Any]:
    """JSON that is encoded already."""
    return Response(content, status_code=status, media_type="application/json", headers=headers)


def answer_struct(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[Any]:
    return answer(encode(content), status, headers)
