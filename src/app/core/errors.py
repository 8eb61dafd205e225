"""Kinds of errors that clients see, and the HTTP status of each.

A feature subclasses a kind and sets `code` and `detail`. This module depends on no web framework.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, ClassVar, override


@dataclass(frozen=True, slots=True)
class FieldError:
    """One invalid value: its place (a JSON pointer as a URI fragment), a stable code, and what to do."""

    pointer: str
    code: str
    detail: str


class AppError(Exception):
    """An error that is part of the API. `problem` names its kind, `code` the exact case. Clients may rely on both."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    problem: ClassVar[str] = "internal-error"
    code: ClassVar[str] = "internal_error"
    detail: str = "Something went wrong on our side."
    oauth_error: ClassVar[str] = "invalid_request"
    # Further members of the problem document. Declare each of them in `core.http.problems.Problem`, for generated clients.
    members: Mapping[str, Any] = MappingProxyType({})

    @override
    def __init_subclass__(cls) -> None:
        # The code of a kind names the kind too. The errors below it inherit this name.
        if AppError in cls.__bases__ and "problem" not in vars(cls):
            cls.problem = cls.code.replace("_", "-")

    def __init__(self, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(self.detail)
        self.headers = dict(headers or {})


class MalformedRequestError(AppError):
    status = HTTPStatus.BAD_REQUEST
    code = "malformed_request"
    detail = "The request could not be parsed."


class InvalidInputError(AppError):
    """The request can be parsed, but some of its values are invalid."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "validation_error"
    detail = "Some values are invalid. See `errors`."

    def __init__(self, *errors: FieldError) -> None:
        super().__init__()
        self.errors = errors


class UnauthenticatedError(AppError):
    status = HTTPStatus.UNAUTHORIZED
    code = "unauthorized"
    detail = "This operation requires an access token."
    oauth_error = "invalid_client"


class ForbiddenError(AppError):
    """The caller is authenticated, but not allowed to do this."""

    status = HTTPStatus.FORBIDDEN
    code = "forbidden"
    detail = "You are not allowed to do this."
    oauth_error = "access_denied"


class NotFoundError(AppError):
    """The resource does not exist, or the caller may not see it."""

    status = HTTPStatus.NOT_FOUND
    code = "not_found"
    detail = "There is no resource at this address."


class MethodNotAllowedError(AppError):
    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"
    detail = "This resource does not support the method. `Allow` lists the methods that it supports."


class NotAcceptableError(AppError):
    status = HTTPStatus.NOT_ACCEPTABLE
    code = "not_acceptable"
    detail = "`Accept` excludes every media type of the response."

    def __init__(self, *media_types: str) -> None:
        if media_types:
            self.detail = f"The response is available as {' or '.join(media_types)}, and `Accept` excludes that."
        super().__init__()


class RequestTimeoutError(AppError):
    status = HTTPStatus.REQUEST_TIMEOUT
    code = "request_timeout"
    detail = "The server did not receive the whole request in time."


class ConflictError(AppError):
    status = HTTPStatus.CONFLICT
    code = "conflict"
    detail = "The request conflicts with the current state of the resource."


class GoneMeanwhileError(ConflictError):
    """A row that the request refers to was deleted before the write.

    The response to a violated foreign key, in operations that declare this error.
    """

    code = "gone_meanwhile"
    detail = "Something that the request refers to has been deleted. Read it again."


class PreconditionFailedError(AppError):
    status = HTTPStatus.PRECONDITION_FAILED
    code = "precondition_failed"
    detail = "The resource has changed since you read it. Read it again."


class PayloadTooLargeError(AppError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "payload_too_large"
    detail = "The body is larger than this server accepts."


class UriTooLongError(AppError):
    status = HTTPStatus.REQUEST_URI_TOO_LONG
    code = "uri_too_long"
    detail = "The address is longer than this server accepts."


class UnsupportedMediaTypeError(AppError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"
    detail = "This operation does not support the media type of the body."


class ExpectationFailedError(AppError):
    status = HTTPStatus.EXPECTATION_FAILED
    code = "expectation_failed"
    detail = "The only supported value of `Expect` is `100-continue`."


class RateLimitedError(AppError):
    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "rate_limited"
    detail = "Too many requests. Wait for the number of seconds in `Retry-After`."
    oauth_error = "temporarily_unavailable"

    def __init__(self, *, retry_after: int) -> None:
        super().__init__(headers={"Retry-After": str(retry_after)})


class HeadersTooLargeError(AppError):
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    code = "headers_too_large"
    detail = "There are more headers than this server accepts, or they are too long."


class InternalError(AppError):
    """A bug of the application. The log line with the same request id has the traceback."""

    oauth_error = "server_error"


class UnavailableError(AppError):
    """A required service is unreachable or overloaded. A later retry may succeed."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "service_unavailable"
    detail = "The service is temporarily unavailable. Try again shortly."
    oauth_error = "temporarily_unavailable"

    def __init__(self, *, retry_after: int = 1) -> None:
        super().__init__(headers={"Retry-After": str(retry_after)})


class PermanentError(Exception):
    """Work failed and a retry cannot succeed. The job that raises it is marked as failed; `app jobs failed` lists it."""


class TemporaryError(Exception):
    """Something outside this process is unavailable. The job is retried, and its log line has no traceback."""


class ConfigurationError(Exception):
    """The settings are invalid. The text lists every problem, one per line."""


def is_out_of_files(error: BaseException) -> bool:
    """Return whether the error means that this process, or the machine, has no free file descriptor."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}
