"""The values that the tests of a feature send, and the results that they expect."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from app.dev.generator.feature import Feature, Field

# The second row has only the members that a body must have, or all if it need not have any.
ROWS = (0, 1, 2)
_SHORT = 1


def bodies(feature: Feature) -> list[str]:
    """Return the body of each row as code."""
    return [_body(feature, row) for row in ROWS]


def _body(feature: Feature, row: int, values: Mapping[str, str] = MappingProxyType({})) -> str:
    sent = [each for each in feature.fields if _is_sent(feature, each, row)]
    members = [f'"{each.name}": {values.get(each.name, each.kind.samples[row])}' for each in sent]
    return f"{{{', '.join(members)}}}"


def _is_sent(feature: Feature, field: Field, row: int) -> bool:
    return row != _SHORT or not field.is_optional or all(each.is_optional for each in feature.fields)


def invalid(feature: Feature) -> Iterator[tuple[str, str]]:
    """Yield the members of a body with a value that is refused."""
    for each in feature.fields:
        yield from ((each.name, value) for value in each.kind.invalid)
        if not each.is_nullable:
            yield each.name, "None"


def listings(feature: Feature) -> Iterator[tuple[str, list[int]]]:
    """Yield parameters of the list, and the numbers of the rows that it returns."""
    for each in feature.sortables:
        order = list(each.kind.sorted_samples or ())
        yield f'{{"sort": "{each.name}"}}', order
        yield f'{{"sort": "-{each.name}"}}', order[::-1]
    yield '{"sort": "created_at"}', list(ROWS)
    if feature.searched:
        yield '{"q": "Mi"}', [0]
        yield '{"q": "%"}', []
    for each in (field for field in feature.fields if field.query):
        value = "OWN_ID" if each.is_set else each.kind.samples[0]
        found = [row for row in ROWS if _is_sent(feature, each, row) and value in each.kind.samples[row]]
        yield f'{{"{each.filter}": {_parameter(value)}}}', found[::-1]


def _parameter(value: str) -> str:
    is_text = value.startswith('"') or value.endswith("_ID")
    return value if is_text else f'"{value.lower()}"'


def access_body(feature: Feature) -> str:
    """Return a valid body for several callers as code. In a public feature, they must not send the same unique value."""
    sent = [each for each in feature.uniques if _is_sent(feature, each, _SHORT)]
    if not (feature.is_public and sent):
        return shortest_body(feature)
    body = _with_unknown_ids(_body(feature, _SHORT, {each.name: each.kind.per_caller for each in sent}))
    return f"lambda caller: {body}"


def foreign_body(feature: Feature) -> str:
    """Return the body of the first row as another account sends it: it cannot refer to rows of this one."""
    owned = [each for each in feature.references if each.target and each.target.is_owned]
    members = [f'"{each.name}": {"[]" if each.is_set else "FOREIGN_ID"}' for each in owned]
    return f"FIRST | {{{', '.join(members)}}}" if members else "FIRST"


def shortest_body(feature: Feature) -> str:
    """Return the members that a body must have as code. References lead to unknown rows."""
    return _with_unknown_ids(_body(feature, _SHORT))


def _with_unknown_ids(body: str) -> str:
    return re.sub(r"\b[A-Z]+_ID\b", "UNKNOWN_ID", body)
