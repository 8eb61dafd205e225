"""The failures a client may see, and the status each kind becomes.

    AppError
    ├── MalformedRequestError     400  cannot be parsed
    ├── InvalidInputError         422  parsed, but a value is refused
    ├── UnauthenticatedError      401  who are you?
    ├── ForbiddenError            403  you may not
    ├── NotFoundError             404
    ├── MethodNotAllowedError     405
    ├── NotAcceptableError        406
    ├── RequestTimeoutError       408  took too long to arrive
    ├── ConflictError             409
    ├── PreconditionFailedError   412
    ├── PayloadTooLargeError      413
    ├── UriTooLongError           414
    ├── UnsupportedMediaTypeError 415
    ├── ExpectationFailedError    417
    ├── RateLimitedError          429
    ├── HeadersTooLargeError      431
    ├── InternalError             500
    └── UnavailableError          503

A feature subclasses a kind and adds `code` and `detail`; nothing here knows HTTP beyond the number.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldError:
    """One refused value: where it was (JSON pointer in a URI fragment), a stable code, and what to do."""

    pointer: str
    code: str
    detail: str


class AppError(Exception):
    """A failure that is part of the contract: `problem` names its kind, `code` this very case."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    problem: ClassVar[str] = "internal-error"
    code: ClassVar[str] = "internal_error"
    detail: str = "Something went wrong on our side."
    oauth_error: ClassVar[str | None] = None

    def __init__(self, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(self.detail)
        self.headers = dict(headers or {})


class MalformedRequestError(AppError):
    """The request cannot be parsed."""

    status = HTTPStatus.BAD_REQUEST
    problem = "malformed-request"
    code = "malformed_request"
    detail = "The request could not be parsed."
    oauth_error = "invalid_request"


class InvalidInputError(AppError):
    """The request was understood, and some of its values are refused."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    problem = "validation-error"
    code = "validation_error"
    detail = "Some values were refused; see `errors`."
    oauth_error = "invalid_request"

    def __init__(self, *errors: FieldError) -> None:
        super().__init__()
        self.errors = errors


class UnauthenticatedError(AppError):
    """The caller has not shown who they are."""

    status = HTTPStatus.UNAUTHORIZED
    problem = "unauthorized"
    code = "unauthorized"
    detail = "This needs an access token."
    oauth_error = "invalid_client"


class ForbiddenError(AppError):
    """The caller is known and may not do this."""

    status = HTTPStatus.FORBIDDEN
    problem = "forbidden"
    code = "forbidden"
    detail = "You are not allowed to do this."
    oauth_error = "access_denied"


class NotFoundError(AppError):
    """There is nothing here, or nothing the caller may see."""

    status = HTTPStatus.NOT_FOUND
    problem = "not-found"
    code = "not_found"
    detail = "There is nothing at this address."


class MethodNotAllowedError(AppError):
    """The address exists, the method does not."""

    status = HTTPStatus.METHOD_NOT_ALLOWED
    problem = "method-not-allowed"
    code = "method_not_allowed"
    detail = "This address does not answer that method; `Allow` lists those it does."


class NotAcceptableError(AppError):
    """The client accepts no form this can be given in."""

    status = HTTPStatus.NOT_ACCEPTABLE
    problem = "not-acceptable"
    code = "not_acceptable"
    detail = "The answer exists as JSON only, and `Accept` excludes it."


class RequestTimeoutError(AppError):
    """The request takes too long to arrive."""

    status = HTTPStatus.REQUEST_TIMEOUT
    problem = "request-timeout"
    code = "request_timeout"
    detail = "The request did not arrive in time."
    oauth_error = "invalid_request"


class ConflictError(AppError):
    """The request contradicts what is stored."""

    status = HTTPStatus.CONFLICT
    problem = "conflict"
    code = "conflict"
    detail = "This contradicts the present state."


class GoneMeanwhileError(ConflictError):
    """A row that the request refers to was deleted before the write: the answer to a violated foreign key, where declared."""

    code = "gone_meanwhile"
    detail = "Something this refers to has been deleted meanwhile; read it again."


class PreconditionFailedError(AppError):
    """The resource changed since the client read it."""

    status = HTTPStatus.PRECONDITION_FAILED
    problem = "precondition-failed"
    code = "precondition_failed"
    detail = "The resource has changed since you read it; read it again."


class PayloadTooLargeError(AppError):
    """The body exceeds the limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    problem = "payload-too-large"
    code = "payload_too_large"
    detail = "The body is larger than this server accepts."
    oauth_error = "invalid_request"


class UriTooLongError(AppError):
    """The target of the request exceeds the limit."""

    status = HTTPStatus.REQUEST_URI_TOO_LONG
    problem = "uri-too-long"
    code = "uri_too_long"
    detail = "The address is longer than this server accepts."


class UnsupportedMediaTypeError(AppError):
    """The body is of a type this operation does not read."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    problem = "unsupported-media-type"
    code = "unsupported_media_type"
    detail = "This operation does not read bodies of that type."
    oauth_error = "invalid_request"


class ExpectationFailedError(AppError):
    """The client expects what no server here does."""

    status = HTTPStatus.EXPECTATION_FAILED
    problem = "expectation-failed"
    code = "expectation_failed"
    detail = "The only expectation this server knows is `100-continue`."


class RateLimitedError(AppError):
    """The caller asks too often."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    problem = "rate-limited"
    code = "rate_limited"
    detail = "Too many requests; wait as long as `Retry-After` says."
    oauth_error = "temporarily_unavailable"

    def __init__(self, *, retry_after: int) -> None:
        super().__init__(headers={"Retry-After": str(retry_after)})


class HeadersTooLargeError(AppError):
    """The headers are too many, or too long together."""

    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    problem = "headers-too-large"
    code = "headers_too_large"
    detail = "The headers are more than this server accepts."


class InternalError(AppError):
    """A defect of ours; the log line with the same request id has the traceback."""

    oauth_error = "server_error"


class UnavailableError(AppError):
    """Something this needs is away or overloaded; it heals by itself."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    problem = "service-unavailable"
    code = "service_unavailable"
    detail = "The service cannot answer at the moment; try again shortly."
    oauth_error = "temporarily_unavailable"

    def __init__(self, *, retry_after: int = 1) -> None:
        super().__init__(headers={"Retry-After": str(retry_after)})


class PermanentError(Exception):
    """Work failed and a retry cannot succeed. The job that raises it is marked as failed; `app jobs failed` lists it."""


class TemporaryError(Exception):
    """Something outside this process is unavailable. The job is retried, and its log line has no traceback."""


class ConfigurationError(Exception):
    """The settings cannot be used; the text names every problem, one a line."""


def is_out_of_files(error: BaseException) -> bool:
    """Tell whether an error means that this process, or the machine, has no free file descriptor."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}
