"""A feature and its fields, with everything that the templates need."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sqlalchemy.dialects.postgresql.base import RESERVED_WORDS

from app.dev.generator import kinds, words
from app.dev.generator.kinds import Kind

_DEFAULT_ORDER = ("created_at", "id")
# With the collation "C", text sorts the same on every machine, and an index also finds the texts with a prefix.
_SORTED_COLUMN, _SORTED_MIGRATION = 'Text(collation="C")', 'sa.Text(collation="C")'


@dataclass(frozen=True)
class Target:
    """A feature that a field refers to: its names, its error for an unknown id, and whether each account sees only its own rows."""

    name: str
    cls: str
    key: str
    """Name of an id, such as `note_id`."""
    error: str
    is_owned: bool
    has_lookup: bool
    """Whether its service has `get_many`."""

    @property
    def words(self) -> str:
        return words.spaced(self.name)


@dataclass(frozen=True)
class Field:
    """A field. `values` are the values of an enumeration, `target` the feature of a reference.

    `given` is the name in the command, if it is another one: `tags:refs(tags)` is called `tag_ids`.
    """

    name: str
    type: str
    kind: Kind
    is_optional: bool = False
    is_unique: bool = False
    values: Sequence[str] = ()
    target: Target | None = None
    given: str = ""

    @property
    def is_set(self) -> bool:
        """Whether it refers to several rows, which a table of links stores."""
        return self.type == "refs"

    @property
    def element(self) -> str:
        """The name of one of several rows."""
        return self.name.removesuffix("_ids")

    @property
    def element_words(self) -> str:
        return words.spaced(self.element)

    @property
    def filter(self) -> str:
        """The parameter of the list."""
        return f"{self.element}_id" if self.is_set else self.name

    @property
    def links(self) -> str:
        """The attribute with the links of a row."""
        return f"{self.element}_links"

    @property
    def is_nullable(self) -> bool:
        return self.is_optional and not self.is_set

    @property
    def is_sortable(self) -> bool:
        return self.kind.sorted_samples is not None and not self.is_optional

    @property
    def stored(self) -> str:
        return f"{self.kind.stored} | None" if self.is_optional else self.kind.stored

    @property
    def answer(self) -> str:
        return self.kind.payload if self.values else self.kind.stored

    @property
    def words(self) -> str:
        return words.spaced(self.name)

    @property
    def column(self) -> str:
        return self._storage.column

    @property
    def migration(self) -> str:
        return self._storage.migration

    @property
    def payload(self) -> str:
        return self.kind.payload

    @property
    def query(self) -> str | None:
        return self.kind.query

    @property
    def _storage(self) -> Kind:
        is_sorted_text = self.type == "str" and (self.is_sortable or self.is_unique)
        return replace(self.kind, column=_SORTED_COLUMN, migration=_SORTED_MIGRATION) if is_sorted_text else self.kind


_OWNER = Field("owner_id", "ref", kinds.reference("users", is_optional=False))


@dataclass(frozen=True)
class Feature:
    """A feature: its plural and its singular in snake case, and its fields.

    With a scope, its rows have no owner. If it is public, everybody may read the rows, and only their owner may change them.
    """

    name: str
    one: str
    fields: Sequence[Field]
    scope: str = ""
    is_public: bool = False

    @property
    def has_owner(self) -> bool:
        return not self.scope

    @property
    def is_owned(self) -> bool:
        """Whether each account sees only its own rows."""
        return self.has_owner and not self.is_public

    @property
    def reader(self) -> str:
        return f"{words.camel(self.scope)}Reader"

    @property
    def writer(self) -> str:
        return f"{words.camel(self.scope)}Writer"

    @property
    def cls(self) -> str:
        return words.camel(self.one)

    @property
    def constant(self) -> str:
        return self.name.upper()

    @property
    def path(self) -> str:
        return f"/{self.name.replace('_', '-')}"

    @property
    def words(self) -> str:
        return words.spaced(self.name)

    @property
    def one_words(self) -> str:
        return words.spaced(self.one)

    @property
    def a_one(self) -> str:
        return words.with_article(self.one_words)

    @property
    def title(self) -> str:
        return self.words.capitalize()

    @property
    def columns(self) -> list[Field]:
        return [each for each in self.fields if not each.is_set]

    @property
    def sets(self) -> list[Field]:
        return [each for each in self.fields if each.is_set]

    @property
    def nullables(self) -> list[Field]:
        return [each for each in self.fields if each.is_nullable]

    @property
    def uniques(self) -> list[Field]:
        return [each for each in self.fields if each.is_unique]

    @property
    def enumerations(self) -> list[Field]:
        return [each for each in self.fields if each.values]

    @property
    def references(self) -> list[Field]:
        """The fields that refer to one row or several rows."""
        return [each for each in self.fields if each.target]

    @property
    def targets(self) -> list[Target]:
        """The features that fields refer to, each once."""
        return list({each.target.name: each.target for each in self.fields if each.target}.values())

    @property
    def lookups(self) -> list[Target]:
        """The features that need `get_many`, because a field refers to several of their rows."""
        targets = {each.target.name: each.target for each in self.sets if each.target}
        return [each for each in targets.values() if not each.has_lookup]

    @property
    def sortables(self) -> list[Field]:
        return [each for each in self.fields if each.is_sortable]

    @property
    def filters(self) -> list[Field]:
        """The filters of the list. A public list can be filtered by the owner."""
        return [*([_OWNER] if self.is_public else []), *(each for each in self.fields if each.query)]

    @property
    def searched(self) -> Field | None:
        """The text that a list can be searched by: the first one that has an index."""
        return next((each for each in self.sortables if each.type == "str"), None)

    @property
    def has_conditions(self) -> bool:
        return bool(self.searched or self.filters)

    @property
    def has_query(self) -> bool:
        return bool(self.sortables or self.filters)

    @property
    def orders(self) -> list[str]:
        """The sort orders of the list, ascending and descending."""
        names = ["created_at", *(each.name for each in self.sortables)]
        return [sign + name for name in names for sign in ("", "-")]

    def sort_columns(self, order: str) -> list[str]:
        """Return the columns of a sort order as code. Together they are unique."""
        name = order.removeprefix("-")
        is_unique = any(each.name == name for each in self.uniques)
        return [f"{self.cls}.{column}" for column in ((name,) if is_unique else (name, "id"))]

    def owned_columns(self, *columns: str) -> tuple[str, ...]:
        """Return columns after the one of the owner, if there is one: every statement names it."""
        return ("owner_id", *columns) if self.is_owned else columns

    @cached_property
    def indexes(self) -> list[tuple[str, ...]]:
        """The columns of each index. A unique constraint is an index, too."""
        return [
            self.owned_columns(*_DEFAULT_ORDER),
            *(self.owned_columns(each.name, "id") for each in self.sortables if not each.is_unique),
            *(
                columns
                for each in self.filters
                if not (each.is_unique or each.is_set)
                for columns in self._filter_indexes(each)
            ),
        ]

    def _filter_indexes(self, field: Field) -> Iterator[tuple[str, ...]]:
        if field.target is None or (self.is_owned and not field.target.is_owned):
            yield self.owned_columns(field.name, *_DEFAULT_ORDER)
        if field.target:
            # Also finds the rows that a deletion in the other table affects. Usually, the rows of one reference have one owner.
            is_shared = self.is_owned and not field.target.is_owned
            yield (field.name,) if is_shared else (field.name, *_DEFAULT_ORDER)

    def link_table(self, field: Field) -> str:
        return f"{self.one}_{field.given}"

    def link_class(self, field: Field) -> str:
        return self.cls + words.camel(field.element)

    def classes(self) -> Iterator[str]:
        """Yield the names of all classes and types."""
        yield from (
            self.cls,
            *(self.cls + suffix for suffix in ("Create", "NotFoundError", "NotYoursError", "Query", "Read", "Update")),
        )
        yield from (name for _, name in self.own_types())

    def own_types(self) -> Iterator[tuple[Field, str]]:
        """Yield the fields that have a class or a type of their own, and its name."""
        yield from ((each, each.answer) for each in self.enumerations)
        yield from ((each, self.link_class(each)) for each in self.sets)
        yield from ((each, self.taken_error(each)) for each in self.uniques)

    def foreign_name(self, field: Field) -> str:
        return f"fk_{self.name}_{field.name}_{field.target.name if field.target else ''}"

    def index_name(self, columns: Sequence[str]) -> str:
        return f"ix_{self.name}_{'_'.join(columns)}"

    def unique_name(self, field: Field) -> str:
        return f"uq_{self.name}_{'_'.join(self.owned_columns(field.name))}"

    def check(self, field: Field) -> str:
        """Return the text of a check constraint as code."""
        values = ", ".join(f"'{value}'" for value in field.values)
        name = f'\\"{field.name}\\"' if field.name in RESERVED_WORDS else field.name
        return f'"{name} IN ({values})"'

    def check_name(self, field: Field) -> str:
        return f"ck_{self.name}_{field.name}"

    def taken_error(self, field: Field) -> str:
        return f"{self.cls}{words.camel(field.name)}TakenError"

    def identifiers(self) -> Iterator[str]:
        """Yield the names of all objects in the database."""
        yield from (self.name, f"pk_{self.name}", *((f"fk_{self.name}_owner_id_users",) if self.has_owner else ()))
        yield from map(self.index_name, self.indexes)
        yield from map(self.unique_name, self.uniques)
        yield from map(self.check_name, self.enumerations)
        yield from (self.foreign_name(each) for each in self.references if not each.is_set)
        for each in self.sets:
            table, target = self.link_table(each), each.target.name if each.target else ""
            yield from (table, f"pk_{table}", f"ix_{table}_{each.filter}")
            yield from (f"fk_{table}_{self.one}_id_{self.name}", f"fk_{table}_{each.filter}_{target}")
