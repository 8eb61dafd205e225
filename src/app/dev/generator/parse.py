"""Reads the arguments of `make feature`, and refuses names that would not work."""

import builtins
import keyword
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from pydantic import BaseModel
from sqlalchemy import Row
from sqlalchemy.orm import DeclarativeBase

from app.dev.generator import kinds, words
from app.dev.generator.errors import GeneratorError
from app.dev.generator.feature import Feature, Field, Target
from app.dev.generator.kinds import KINDS, Kind

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_REFERENCE = re.compile(r"(refs?)\(([a-z0-9_]+)\)")
_ENUMERATION = re.compile(r"enum\((.*)\)")
_EXAMPLE = 'make feature NAME=notes FIELDS="title:str body:text:optional"'
# The name of a revision has at most 32 characters, of which the date takes nine.
_MIN_LENGTH, _MAX_LENGTH = 3, 23
_MAX_IDENTIFIER = 63
_OPTIONS = ("optional", "unique")
# Members of models, of schemas and of the rows of a list, parameters of functions that get each field as an argument, names of
# types in the class of the model, and system columns of PostgreSQL.
_RESERVED = {
    *("owner_id", "id", "created_at", "updated_at", "version", "require_version", "mro"),
    *(*dir(DeclarativeBase), "metadata", "registry", "type_annotation_map", *dir(BaseModel)),
    *(set(dir(Row)) - {"count", "index"}),
    *("self", "session"),
    *("str", "int", "bool", "list"),
    *("tableoid", "ctid", "xmin", "xmax", "cmin", "cmax"),
}
_PARAMETERS = {"limit", "cursor", "sort", "q"}


type Targets = Callable[[str], Target]


def parse(
    name: str, fields: str, one: str = "", scope: str = "", *, is_public: bool = False, targets: Targets
) -> Feature:
    """Return the feature that the arguments describe. Raises `GeneratorError` for names and types that cannot be used.

    `targets` returns the feature that a field refers to.
    """
    _refuse_name(name)
    one = one or _singular(name)
    _refuse_singular(one)
    texts = _split(fields)
    if not texts:
        message = f"{name} needs at least one field. Example: {_EXAMPLE}"
        raise GeneratorError(message)
    for text in texts:
        _refuse_itself(name, text)
    feature = Feature(name, one, [_field(text, one, targets) for text in texts], scope, is_public)
    _refuse_scope(feature)
    _refuse_duplicates(feature)
    _refuse_long_identifiers(feature)
    return feature


def _refuse_name(name: str) -> None:
    if not name:
        message = f"The name is missing. Example: {_EXAMPLE}"
        raise GeneratorError(message)
    _refuse_spelling("name", name, "NAME=purchase_orders")
    if not _MIN_LENGTH <= len(name) <= _MAX_LENGTH:
        message = (
            f'"{name}" has {len(name)} characters; a feature has {_MIN_LENGTH} to {_MAX_LENGTH}. Choose another name.'
        )
        raise GeneratorError(message)
    if name.startswith("procrastinate_"):
        raise GeneratorError("The tables of the job queue begin with procrastinate_. Choose another name.")


def _refuse_spelling(what: str, text: str, example: str) -> None:
    if not _NAME.fullmatch(text):
        message = (
            f'"{text}" is not a valid {what}. Use small letters a to z, digits and underscores, for example {example}'
        )
        raise GeneratorError(message)
    if keyword.iskeyword(text):
        message = f'"{text}" is a keyword of Python. Choose another {what}.'
        raise GeneratorError(message)


def _singular(name: str) -> str:
    guess = words.singular(name)
    if guess is None:
        message = f'The singular of "{name}" is not known. Add it, for example ONE={name}_item'
        raise GeneratorError(message)
    return guess


def _refuse_singular(one: str) -> None:
    _refuse_spelling("singular", one, "ONE=purchase_order")
    if keyword.iskeyword(words.camel(one)) or hasattr(builtins, words.camel(one)):
        message = (
            f'The class of "{one}" would have a name of Python. Choose another singular, for example ONE=own_{one}'
        )
        raise GeneratorError(message)
    if hasattr(builtins, one):
        message = f'"{one}" is a builtin name of Python. Choose another singular, for example ONE=own_{one}'
        raise GeneratorError(message)


def _refuse_scope(feature: Feature) -> None:
    if not feature.scope:
        return
    _refuse_spelling("scope", feature.scope, f"SCOPE={feature.name}")
    if feature.is_public:
        raise GeneratorError(
            "The rows of a public feature have owners, and those of a feature with a scope do not. Leave out PUBLIC or SCOPE."
        )
    for target in feature.targets:
        if target.is_owned:
            message = f"A feature with a scope cannot refer to {target.name}, whose rows have owners. Leave out the field or the scope."
            raise GeneratorError(message)


def _split(fields: str) -> Sequence[str]:
    """Split at the spaces that are not inside parentheses."""
    return re.sub(r"\(([^()]*)\)", lambda match: re.sub(r"\s+", "", match[0]), fields).split()


def _refuse_itself(name: str, text: str) -> None:
    field, _, type_ = text.partition(":")
    if re.match(rf"refs?\({name}\)", type_):
        message = f"{name} cannot refer to itself. Leave out the field {field}, and write it by hand: decide whether there may be cycles."
        raise GeneratorError(message)


def _field(text: str, one: str, targets: Targets) -> Field:
    name, *rest = text.split(":")
    if not name or not rest or not rest[0]:
        message = f'"{text}" is not a field. Write name:type, for example title:str'
        raise GeneratorError(message)
    type_, *options = rest
    _refuse_spelling("name of a field", name, "title:str")
    _refuse_options(name, options)
    field = _typed(name, type_, words.camel(one), targets, is_optional="optional" in options)
    field = replace(field, is_optional="optional" in options, is_unique="unique" in options)
    _refuse_unique(field)
    _refuse_reserved(field)
    if field.name == one:
        message = f"{one} is the name of a row of the feature. Choose another name for the field, for example own_{one}"
        raise GeneratorError(message)
    return field


def _typed(name: str, type_: str, cls: str, targets: Targets, *, is_optional: bool) -> Field:
    if match := _REFERENCE.fullmatch(type_):
        return _reference(name, match[1], targets(match[2]), is_optional=is_optional)
    if values := _values(name, type_):
        return Field(name, "enum", kinds.enumeration(cls + words.camel(name), values), values=values)
    return Field(name, type_, _kind(name, type_))


def _reference(name: str, type_: str, target: Target, *, is_optional: bool) -> Field:
    if type_ == "ref":
        return Field(f"{name}_id", type_, kinds.reference(target.name, is_optional=is_optional), target=target)
    return Field(f"{words.singular(name) or name}_ids", type_, kinds.REFERENCES, target=target, given=name)


def _kind(name: str, type_: str) -> Kind:
    if type_ not in KINDS:
        message = f'{name} has the unknown type "{type_}". Use one of: {", ".join(KINDS)}, enum(a,b), ref(projects), refs(tags)'
        raise GeneratorError(message)
    return KINDS[type_]


def _values(name: str, type_: str) -> Sequence[str]:
    match = _ENUMERATION.fullmatch(type_)
    if match is None:
        return ()
    values = match[1].split(",")
    if len(values) < len("ab") or len(set(values)) < len(values) or not all(map(_NAME.fullmatch, values)):
        message = (
            f"{name} needs at least two different values in small letters, for example {name}:enum(draft,sent,paid)"
        )
        raise GeneratorError(message)
    return values


def _refuse_options(name: str, options: Sequence[str]) -> None:
    for option in options:
        if option not in _OPTIONS or options.count(option) > 1:
            message = f'{name} has the unknown or repeated option "{option}". Use: {", ".join(_OPTIONS)}'
            raise GeneratorError(message)


def _refuse_unique(field: Field) -> None:
    if field.is_unique and not field.kind.may_be_unique:
        message = f"{field.name} cannot be unique, because its type is {field.type}. Leave out :unique"
        raise GeneratorError(message)


def _refuse_reserved(field: Field) -> None:
    attributes = {field.name, field.links} if field.is_set else {field.name}
    if attributes & _RESERVED or (field.query and field.filter in _PARAMETERS):
        message = f'"{field.name}" has a meaning of its own in every feature. Choose another name for the field.'
        raise GeneratorError(message)


def _refuse_duplicates(feature: Feature) -> None:
    names = [each.name for each in feature.fields]
    names += [name for each in feature.sets for name in {each.filter, each.links}]
    for name in names:
        if names.count(name) > 1:
            message = f"There are two fields with the name {name}. Rename one of them."
            raise GeneratorError(message)
    for each in feature.sets:
        if each.element == feature.one:
            message = f"{each.given} has the name of the feature itself. Rename it, for example to related_{each.given}"
            raise GeneratorError(message)


def _refuse_long_identifiers(feature: Feature) -> None:
    for name in feature.identifiers():
        if len(name) > _MAX_IDENTIFIER:
            message = (
                f"PostgreSQL names have at most {_MAX_IDENTIFIER} characters, and {name} would have {len(name)}. "
                "Choose a shorter name for the feature or the field."
            )
            raise GeneratorError(message)
