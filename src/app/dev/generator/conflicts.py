"""Refuses a feature whose names already exist in the repository."""

from collections.abc import Iterator

from app.dev.generator.errors import GeneratorError
from app.dev.generator.feature import Feature
from app.dev.generator.render import imported_names
from app.dev.generator.repository import Repository


def refuse_conflicts(repository: Repository, feature: Feature) -> None:
    """Raise `GeneratorError` for the first name that is taken."""
    for message in _conflicts(repository, feature):
        raise GeneratorError(message)


def _conflicts(repository: Repository, feature: Feature) -> Iterator[str]:
    for path in _paths(repository, feature):
        if (repository.root / path).exists():
            yield f"{path} exists already. Choose another name."
    for table in (feature.name, *map(feature.link_table, feature.sets)):
        if table in repository.tables():
            yield f'The table "{table}" exists already. Choose another name.'
    yield from _names_in_the_api(repository, feature)
    yield from _missing_lookups(repository, feature)
    yield from _hidden_imports(repository, feature)
    yield from _hidden_classes(repository, feature)


def _names_in_the_api(repository: Repository, feature: Feature) -> Iterator[str]:
    for code in (
        f"{feature.one}_not_found",
        f"{feature.one}_not_yours",
        *(f"{feature.one}_{each.name}_taken" for each in feature.uniques),
    ):
        if code in repository.error_codes():
            yield f'Another feature has the error "{code}". Choose another singular, for example ONE=own_{feature.one}'
    for endpoint in _endpoints(feature):
        if endpoint in repository.endpoints():
            yield f"Another feature has the endpoint {endpoint}. Choose another name."
    if feature.scope in repository.scopes():
        yield f'Another feature has the scope "{feature.scope}". Choose another one, for example SCOPE={feature.name}'


def _missing_lookups(repository: Repository, feature: Feature) -> Iterator[str]:
    for target in feature.lookups:
        if not repository.can_extend(target.name):
            owner = "owner_id, " if target.is_owned else ""
            yield (
                f"A field cannot refer to several {target.words}, because {target.name} has no {target.name}/crud.py. "
                f"Add get_many(session, {owner}{target.key}s) to its service."
            )


def _paths(repository: Repository, feature: Feature) -> Iterator[str]:
    yield f"src/app/{feature.name}"
    yield f"src/app/{feature.name}.py"
    yield f"tests/{feature.name}"
    if revision := repository.revision_of(feature.name):
        yield f"src/app/migrations/versions/{revision.name}.py"


def _endpoints(feature: Feature) -> Iterator[str]:
    yield f"list_{feature.name}"
    yield from (f"{verb}_{feature.one}" for verb in ("create", "read", "update", "delete"))


def _hidden_imports(repository: Repository, feature: Feature) -> Iterator[str]:
    imported = imported_names(repository.root)
    # The templates import the class of this name under another one.
    if (imported - {"Order"}) & {feature.cls, f"{feature.cls}Query"} or feature.one in _VARIABLES:
        yield (
            f"Generated code has another {feature.cls} or {feature.one}. Choose another singular, for example ONE=own_{feature.one}"
        )
    if feature.name in imported | _VARIABLES:
        yield f"Generated code has another {feature.name}. Choose another name."
    for field in feature.fields:
        if field.name in imported:
            yield f'"{field.name}" is the name of a type. Choose another name for the field, for example {field.name}_value'


def _hidden_classes(repository: Repository, feature: Feature) -> Iterator[str]:
    classes, imported = list(feature.classes()), imported_names(repository.root)
    for field, name in feature.own_types():
        if classes.count(name) > 1 or name in imported:
            given = field.given or field.name
            yield f"{given} would need another class {name}. Choose another name for the field, for example own_{given}"


# Parameters and variables of the templates, which a row must not have as its name.
_VARIABLES = {
    "actor",
    "admin",
    "audit",
    "changes",
    "client",
    "cls",
    "columns",
    "created",
    "crud",
    "delete",
    "keyset",
    "page",
    "pager",
    "payload",
    "principal",
    "query",
    "reader",
    "request",
    "router",
    "routing",
    "select",
    "self",
    "service",
    "session",
    "statement",
    "url",
    "user",
    "values",
    "versions",
    "writer",
}
