"""The types of fields: how each one is stored, validated, filtered, sorted and tested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Kind:
    """A type of fields. All values are Python code for the templates."""

    stored: str
    """Type in the model."""
    migration: str
    payload: str
    """Type in request bodies."""
    samples: Sequence[str]
    """Values of three rows."""
    invalid: Sequence[str]
    """Values that a request body must not have."""
    column: str = ""
    """Arguments of `mapped_column`."""
    query: str | None = None
    """Type of the filter, for types that a list can be filtered by."""
    sorted_samples: Sequence[int] | None = None
    """Numbers of the samples in ascending order, for types that a list can be sorted by."""
    may_be_unique: bool = True
    per_caller: str = ""
    """A value that is unique for each caller, for types that may be unique."""


WORDS = ('"Milk"', '"Tea"', '"Honey"')
_IDS = tuple(f'"0192f0c1-a2b3-7c4d-8e5f-60718293a4b{digit}"' for digit in (1, 2, 3))
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "str": Kind(
            "str",
            "sa.Text()",
            "ShortText",
            WORDS,
            ('""', '"x" * 129'),
            sorted_samples=(2, 0, 1),
            per_caller="caller.hex",
        ),
        "text": Kind("str", "sa.Text()", "LongText", WORDS, ('""', '"x" * 10_001'), may_be_unique=False),
        "int": Kind(
            "int",
            "sa.BigInteger()",
            "Whole",
            ("20", "3", "100"),
            ('"1"', "10**13"),
            sorted_samples=(1, 0, 2),
            per_caller="caller.int % 10**12",
        ),
        "decimal": Kind(
            "Decimal",
            "sa.Numeric(14, 2)",
            "Amount",
            ('"20.00"', '"3.50"', '"100.00"'),
            ("1", '"1.5"'),
            column="Numeric(14, 2)",
            sorted_samples=(1, 0, 2),
            per_caller='f"{caller.int % 10**12}.00"',
        ),
        "bool": Kind(
            "bool",
            "sa.Boolean()",
            "Flag",
            ("True", "False", "True"),
            ('"true"',),
            query="QueryFlag",
            may_be_unique=False,
        ),
        "date": Kind(
            "date",
            "sa.Date()",
            "Day",
            ('"2026-03-01"', '"2024-02-29"', '"2026-01-31"'),
            ('"2026-02-29"',),
            sorted_samples=(1, 2, 0),
            per_caller="str(date.fromordinal(1 + caller.int % 3_000_000))",
        ),
        "datetime": Kind(
            "datetime",
            "sa.DateTime(timezone=True)",
            "Instant",
            ('"2026-03-01T12:00:00Z"', '"2024-02-29T00:00:00Z"', '"2026-01-31T23:59:59Z"'),
            ('"2026-01-31T12:00:00"',),
            sorted_samples=(1, 2, 0),
            per_caller="datetime.fromtimestamp(caller.int % 10**9, UTC).isoformat()",
        ),
        "uuid": Kind(
            "UUID", "sa.Uuid()", "Identifier", _IDS, ('"1"',), query="QueryIdentifier", per_caller="str(caller)"
        ),
    }
)


def enumeration(name: str, values: Sequence[str]) -> Kind:
    """Return the type of a field with these values. `name` is the name of its type in the code."""
    samples = [f'"{values[number % len(values)]}"' for number in range(3)]
    return Kind("str", "sa.Text()", name, samples, ('""',), query=name, may_be_unique=False)


def reference(table: str, *, is_optional: bool) -> Kind:
    """Return the type of a field that refers to a row of this table. The tests define the constants."""
    ondelete = "SET NULL" if is_optional else "CASCADE"
    return Kind(
        "UUID",
        "sa.Uuid()",
        "Identifier",
        ("OWN_ID", "OTHER_ID", "OWN_ID"),
        ('"1"',),
        column=f'ForeignKey("{table}.id", ondelete="{ondelete}")',
        query="QueryIdentifier",
        may_be_unique=False,
    )


REFERENCES = Kind(
    "list[UUID]",
    "",
    "Identifiers",
    ("[OWN_ID, OTHER_ID]", "[]", "[OTHER_ID]"),
    ('"1"', "[OWN_ID, OWN_ID]", "[UNKNOWN_ID] * 101"),
    query="QueryIdentifier",
    may_be_unique=False,
)
"""The type of a field that refers to a set of rows, which a table of its own stores."""
