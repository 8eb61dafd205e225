"""Check of `make migrations` in addition to squawk: each downgrade drops the types that its upgrade creates."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

from app.migrations import scripts

_CREATED = re.compile(r"\bCREATE\s+(?:TYPE|DOMAIN)\s+([\w.\"]+)", re.IGNORECASE)
_DROPPED = re.compile(r"\bDROP\s+(?:TYPE|DOMAIN)\s+(?:IF\s+EXISTS\s+)?([\w.\", ]+)", re.IGNORECASE)


def leftovers() -> Iterator[str]:
    """Return a sentence for each type that a downgrade does not drop. The next upgrade would fail because it exists."""
    directory = scripts.read()
    for script in directory.walk_revisions():
        # `create_table` also creates the enumerations of its columns, but `drop_table` does not drop them. Alembic's drafts
        # do not drop them either.
        created = set(_CREATED.findall(_sql(directory, script.module.upgrade)))
        # For example `DROP TYPE one, two CASCADE`.
        lists = _DROPPED.findall(_sql(directory, script.module.downgrade))
        dropped = {name.split()[0] for names in lists for name in names.split(",") if name.strip()}
        for name in sorted(created - dropped):
            yield (
                f"{Path(script.path).name} creates the type {name}, and its downgrade does not drop it; end downgrade() with: "
                f'op.execute("DROP TYPE {name}")'
            )


def _sql(directory: ScriptDirectory, function: Callable[[], None]) -> str:
    """Return the SQL of one function of a migration, as `alembic upgrade --sql` writes it."""
    output = io.StringIO()
    with EnvironmentContext(scripts.config(), directory, as_sql=True) as environment:
        environment.configure(dialect_name="postgresql", output_buffer=output, literal_binds=True)
        context = environment.get_context()
        with context.begin_transaction(), Operations.context(context):
            function()
    return output.getvalue()
