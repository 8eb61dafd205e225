"""How an operation reads its body: by its declared media type, strictly, and only once."""

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from datetime import timedelta
from typing import Any, override

from fastapi import Request, params
from fastapi.dependencies.models import Dependant
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from starlette.datastructures import FormData, UploadFile

from app.core.errors import FieldError, InvalidInputError, UnsupportedMediaTypeError
from app.core.http.problems import pointer
from app.core.http.requests.forms import parse_form
from app.core.http.requests.json_bodies import parse_json
from app.core.http.requests.multipart import Limits, Part, boundary_of, read_form
from app.core.http.requests.parameters import (
    inputs,
    is_list,
    members,
    models_of,
    refuse_repeated_fields,
    repeatable,
)

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
# Maximum size of a form in bytes, enough for a token of 10 KB. Parsing time grows with the size, and anonymous clients send forms.
MAX_FORM_SIZE = 16_384

type Reader = Callable[[Request], Awaitable[Request]]


class _ParsedRequest(Request):
    """A request whose body was read and parsed already."""

    parsed: Any = None
    fields: FormData | None = None

    @override
    async def json(self) -> Any:
        return self.parsed

    @override
    async def form(self, **_limits: float) -> FormData:  # type: ignore[override]  # Only awaited, never used in `async with`.
        return self.fields or FormData()


def body_fields(dependant: Dependant) -> Iterator[Any]:
    """Yield the fields of FastAPI that an operation and its dependencies read from the body."""
    yield from dependant.body_params
    for dependency in dependant.dependencies:
        yield from body_fields(dependency)


def media_type_of(info: FieldInfo) -> str:
    """Return the media type of a declared body."""
    if isinstance(info, params.File):
        return MULTIPART
    if isinstance(info, params.Form):
        return MULTIPART if info.media_type == MULTIPART else FORM
    return JSON


def limited(read: Reader | None, kind: str | None, size: int | None, timeout: timedelta | None) -> Reader | None:
    """Return a reader that first sets the limits of the operation for the middleware and the server."""
    if kind != FORM and size is None and timeout is None:
        return read

    async def limited_read(request: Request) -> Request:
        if size is not None:
            request.scope["max_body_size"] = size
        elif kind == FORM:
            request.scope["max_body_size"] = min(request.scope.get("max_body_size", MAX_FORM_SIZE), MAX_FORM_SIZE)
        if timeout is not None:
            # The server has this dictionary, too. It measures the time.
            request.scope.setdefault("state", {})["body_timeout"] = timeout.total_seconds()
        return request if read is None else await read(request)

    return limited_read


async def read_json(request: Request) -> Request:
    """Read a JSON body."""
    _refuse_media_type(request, JSON)
    parsed = _ParsedRequest(request.scope, request.receive)
    parsed.parsed = parse_json(await parsed.body())
    return parsed


def refuse_impossible(kind: str | None, fields: Collection[Any]) -> None:
    """Raise `ValueError` for a form that FastAPI accepts as a declaration, but that no request could satisfy."""
    models = [model for field in fields for model in models_of(field.field_info)]
    if kind == FORM and any(is_file(info) for _, info in inputs(fields)):
        message = "this form has a file: declare its model as Annotated[…, File()], so that it is multipart/form-data"
        raise ValueError(message)
    if kind in {FORM, MULTIPART} and len(fields) > 1 and any(is_closed(model) for model in models):
        message = "this form has a model that refuses unknown fields beside other fields: move those into the model"
        raise ValueError(message)


def is_closed(model: type[BaseModel]) -> bool:
    """Return whether a model refuses unknown fields."""
    return model.model_config.get("extra") == "forbid"


def form_reader(fields: Collection[Any]) -> Reader:
    """Return a reader of URL-encoded forms."""
    declared = repeatable(inputs(fields))
    # A model decides itself about unknown fields.
    has_model = any(True for field in fields for _ in models_of(field.field_info))
    may_be_empty = not any(info.is_required() for _, info in inputs(fields))

    async def read(request: Request) -> Request:
        parsed = _ParsedRequest(request.scope, request.receive)
        if not may_be_empty or "content-type" in request.headers or await parsed.body():
            _refuse_media_type(request, FORM)
        given: list[tuple[str, str | UploadFile]] = [*parse_form(await parsed.body())]
        names = [name for name, _ in given]
        refuse_repeated_fields(names, declared)
        if not has_model:
            _refuse_unknown(names, declared)
        parsed.fields = FormData(given)
        return parsed

    return read


def multipart_reader(fields: Collection[Any], limits: Mapping[str, Any]) -> Reader:
    """Return a reader of forms with files."""
    parts: dict[str, Part] = {}
    for name, info in inputs(fields):
        known = parts.get(name, Part(is_file=False, is_list=True))
        parts[name] = Part(is_file=known.is_file or is_file(info), is_list=known.is_list and is_list(info.annotation))
    ignores_others, chosen = _ignores_others(fields), Limits(**limits)

    async def read(request: Request) -> Request:
        boundary = boundary_of(_parameters(request, {MULTIPART}))
        parsed = _ParsedRequest(request.scope, request.receive)
        parsed.fields = await read_form(parsed.stream(), boundary, parts, chosen, ignores_others=ignores_others)
        return parsed

    return read


def raw_reader(media_types: Collection[str]) -> Reader:
    """Return a reader that leaves the body to the endpoint, and checks only its media type."""

    async def read(request: Request) -> Request:
        parameters = _parameters(request, media_types).lower().replace('"', "")
        if "charset=" in parameters and "charset=utf-8" not in [one.strip() for one in parameters.split(";")]:
            raise UnsupportedMediaTypeError
        return request

    return read


def is_file(info: FieldInfo) -> bool:
    """Return whether a field of a form is declared as a file, or as a list of files."""
    kinds = [argument for member in members(info.annotation) for argument in (member, *getattr(member, "__args__", ()))]
    # A model that is declared as `File()` also has fields that are no files.
    return isinstance(info, params.File) or any(isinstance(one, type) and issubclass(one, UploadFile) for one in kinds)


def _ignores_others(fields: Collection[Any]) -> bool:
    """Return whether a form has a model that does not refuse unknown fields."""
    models = [model for field in fields for model in models_of(field.field_info)]
    return not all(is_closed(model) for model in models)


def _refuse_unknown(names: Collection[str], declared: Mapping[str, bool]) -> None:
    errors = [
        FieldError(pointer(name), "extra_forbidden", "This operation has no such field.")
        for name in names
        if name not in declared
    ]
    if errors:
        raise InvalidInputError(*errors)


def _refuse_media_type(request: Request, expected: str) -> None:
    if _parameters(request, (expected,)).lower().replace('"', "") not in {"", "charset=utf-8"}:
        raise UnsupportedMediaTypeError


def _parameters(request: Request, expected: Collection[str]) -> str:
    """Return the parameters of the content type. Refuse a body of another type, or a compressed one."""
    given = request.headers.getlist("content-type")
    encodings = request.headers.getlist("content-encoding")
    if len(given) != 1 or any(encoding.strip().lower() != "identity" for encoding in encodings):
        raise UnsupportedMediaTypeError
    kind, _, parameters = given[0].partition(";")
    if kind.strip().lower() not in expected:
        raise UnsupportedMediaTypeError
    return parameters.strip()
