"""Codes that close a WebSocket (RFC 6455, 7.4), and the errors that they stand for."""

import json
from http import HTTPStatus

from app.core.errors import AppError
from app.core.http.middleware import ShuttingDownError

NORMAL, LOST, TOO_BIG, INTERNAL, RESTART, TRY_LATER = 1000, 1006, 1009, 1011, 1012, 1013
APPLICATION = 4000
_OF_STATUS: dict[int, int] = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: TOO_BIG,
    HTTPStatus.SERVICE_UNAVAILABLE: TRY_LATER,
}


def close_code(error: AppError) -> int:
    """Return the code that closes a socket for an error: 4000 and its HTTP status, or the code of the protocol that means the same."""
    if isinstance(error, ShuttingDownError):
        return RESTART
    return code_of_status(error.status)


def code_of_status(status: int) -> int:
    """Return the code that closes a socket for an error response with this status."""
    default = INTERNAL if status >= HTTPStatus.INTERNAL_SERVER_ERROR else APPLICATION + status
    return _OF_STATUS.get(status, default)


def code_in(document: bytes) -> str:
    """Return the code of a problem document, or nothing for another response."""
    try:
        problem: object = json.loads(document)
    except ValueError:
        return ""
    return str(problem.get("code", "")) if isinstance(problem, dict) else ""
