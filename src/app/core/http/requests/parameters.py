"""The names that a client may send in a query or a form, and the refusal of all others."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from fastapi.dependencies.models import Dependant
from fastapi.requests import HTTPConnection
from pydantic import AliasChoices, AliasPath, BaseModel, Json
from pydantic.fields import FieldInfo
from starlette.datastructures import QueryParams

from app.core.errors import FieldError, InvalidInputError
from app.core.http.problems import pointer

_MAX_PARAMETERS = 100
_LISTS: tuple[type[Any], ...] = (Sequence, AbstractSet, deque)

type Repeatable = Mapping[str, bool]
"""The names that an operation declares, each with whether it may be repeated."""


def query_parameters(dependant: Dependant) -> Repeatable:
    """Return the query parameters of an operation and its dependencies."""
    return repeatable(inputs(_query_fields(dependant)))


def _query_fields(dependant: Dependant) -> Iterator[Any]:
    yield from dependant.query_params
    for dependency in dependant.dependencies:
        yield from _query_fields(dependency)


def inputs(fields: Iterable[Any]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield each name that these fields of FastAPI read, with its declaration. A model reads the names of its own fields."""
    for field in fields:
        models = list(models_of(field.field_info))
        for model in models:
            for name, info in model.model_fields.items():
                yield from ((alias, info) for alias in _aliases(name, info, model.model_config))
        if not models:
            yield from ((alias, field.field_info) for alias in _aliases(field.name, field.field_info, {}))


def models_of(info: FieldInfo) -> Iterator[type[BaseModel]]:
    """Yield the models whose fields are separate parameters. A parameter that contains JSON is a single one."""
    if not any(one is Json or type(one) is Json for one in info.metadata):
        yield from (one for one in members(info.annotation) if isinstance(one, type) and issubclass(one, BaseModel))


def members(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, or the type itself, without `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members(get_args(annotation)[0])
    elif origin in {Union, UnionType}:
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation


def _aliases(name: str, info: FieldInfo, config: Mapping[str, Any]) -> Iterator[str]:
    declared = info.validation_alias or info.alias or name
    for alias in declared.choices if isinstance(declared, AliasChoices) else (declared,):
        yield str(alias.path[0]) if isinstance(alias, AliasPath) else alias
    if config.get("populate_by_name") or config.get("validate_by_name"):
        yield name


def repeatable(declared: Iterable[tuple[str, FieldInfo]]) -> Repeatable:
    """Return which names may be repeated: those that every declaration reads as a list, a set or a tuple."""
    names: dict[str, bool] = {}
    for name, info in declared:
        names[name] = names.get(name, True) and is_list(info.annotation)
    return names


def is_list(annotation: Any) -> bool:
    """Return whether a declaration reads all values of its name."""
    kinds = [get_origin(member) or member for member in members(annotation)]
    return any(
        isinstance(kind, type) and issubclass(kind, _LISTS) and not issubclass(kind, str | bytes) for kind in kinds
    )


def refuse_parameters(request: HTTPConnection, declared: Repeatable, *, accepts_others: bool) -> None:
    """Refuse unknown query parameters, repeated ones and too many of them."""
    # Only the first parameters are checked. The errors in them are enough.
    first, *rest = _split(request.scope["query_string"])
    given = [name for name, _ in (QueryParams(first) if rest else request.query_params).multi_items()]
    errors = [
        _parameter_error(name, "unknown_parameter", "This operation has no such parameter.")
        for name in given
        if not accepts_others and name not in declared
    ]
    errors += [_parameter_error(name, *_REPEATED) for name in _repeated(given, declared)]
    if rest:
        detail = f"A query may have at most {_MAX_PARAMETERS} parameters."
        errors.append(FieldError("#/query", "too_many_parameters", detail))
    if errors:
        raise InvalidInputError(*errors)


_REPEATED = ("duplicate_parameter", "This may be given only once.")


def _repeated(given: Sequence[str], declared: Repeatable) -> Iterator[str]:
    return (name for name, count in Counter(given).items() if count > 1 and not declared.get(name, True))


def refuse_repeated_fields(given: Sequence[str], declared: Repeatable) -> None:
    """Refuse form fields that are repeated, unless they are declared as lists. An unknown field may not be repeated either."""
    known = dict.fromkeys(given, False) | dict(declared)
    errors = [FieldError(pointer(name), *_REPEATED) for name in _repeated(given, known)]
    if errors:
        raise InvalidInputError(*errors)


def _split(query: bytes) -> list[bytes]:
    """Return the query, or two parts if it has too many parameters: the first ones, and the rest."""
    if query.count(b"&") < _MAX_PARAMETERS:
        return [query]
    *first, rest = query.split(b"&", _MAX_PARAMETERS)
    return [b"&".join(first), rest]


def _parameter_error(name: str, code: str, detail: str) -> FieldError:
    return FieldError(pointer=pointer("query", name), code=code, detail=detail)
