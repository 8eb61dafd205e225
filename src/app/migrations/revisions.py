"""What the migration files say, without a database."""

from functools import cache
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory


def config() -> Config:
    """Give Alembic's configuration: the scripts are part of the package, wherever it is installed."""
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    configuration.set_main_option("path_separator", "os")
    return configuration


@cache
def head() -> str:
    """Name the revision this program was written for."""
    (revision,) = ScriptDirectory.from_config(config()).get_heads()
    return revision


@cache
def known() -> frozenset[str]:
    """Name every revision this program has heard of; any other is a newer program's."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(config()).walk_revisions())


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Say whether the models describe this: the tables of the job queue are procrastinate's. Alembic's `include_name`."""
    return not (kind == "table" and name is not None and name.startswith("procrastinate_"))
