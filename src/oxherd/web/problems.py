"""Errors as HTTP sees them: problem details, as RFC 9457 has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from oxherd.errors import (
    ApprovalClosed,
    JobStateError,
    KeyReused,
    NotFound,
    OxherdError,
    PayloadInvalid,
    RedisRefused,
    ResultInvalid,
    StoreRefused,
    Unreachable,
    UsageError,
)
from oxherd.web.answers import dump

MEDIA_TYPE = "application/problem+json"

# The first kind that an error is of decides.
STATUS: tuple[tuple[type[OxherdError], int], ...] = (
    (NotFound, 404),
    (JobStateError, 409),
    (ApprovalClosed, 409),
    (KeyReused, 422),
    (PayloadInvalid, 422),
    (ResultInvalid, 422),
    (StoreRefused, 422),
    (UsageError, 422),
    (Unreachable, 503),
    (RedisRefused, 503),
)


class Problem(Exception):
    """An answer that is an error.

    Parameters:
        status: of HTTP.
        detail: one sentence for a person.
        hint: what to do next, or an empty string.
        fields: what is wrong where: `body.data`, `query.limit`, and in words.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        hint: str = "",
        fields: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.hint = hint
        self.fields = fields
        self.headers = headers or {}

    @classmethod
    def of(cls, error: OxherdError) -> Problem:
        """The same in terms of HTTP."""
        status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
        headers = {"Retry-After": "5"} if status == 503 else {}
        return cls(status, error.message, hint=_for_http(error.hint), headers=headers)

    @classmethod
    def of_fields(cls, place: str, error: ValidationError) -> Problem:
        """What does not fit, each by the name of its field.

        Parameters:
            place: where the fields are: body, query, path or header.
            error: pydantic's.
        """
        fields = [(".".join((place, *map(str, each["loc"]))), each["msg"]) for each in error.errors(include_url=False)]
        name, what = fields[0]
        more = f", and {len(fields) - 1} more" if len(fields) > 1 else ""
        return cls(422, f"{name}: {what}{more}", fields=fields)

    def response(self) -> Response:
        """The answer."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.hint:
            body["hint"] = self.hint
        if self.fields:
            body["errors"] = [{"field": field, "detail": detail} for field, detail in self.fields]
        return Response(dump(body), self.status, dict(self.headers), MEDIA_TYPE)


def _for_http(hint: str) -> str:
    """Hints that name a command help at a terminal; whoever asks over HTTP may have none."""
    return "" if hint.startswith("oxherd ") else hint
