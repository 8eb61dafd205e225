"""``python -m app.dev``: the development commands that the Makefile calls."""

import signal
import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from app.core.errors import ConfigurationError
from app.core.listening import PortInUseError
from app.dev import contracts as import_contracts
from app.dev import docs as generated_docs
from app.dev import migrations as checked_migrations
from app.dev import rename as renaming
from app.dev import run as make_run
from app.dev.data import seeds, tools
from app.dev.data.draft import DraftError, draft
from app.dev.generator.errors import GeneratorError
from app.dev.postgres.cluster import EmbeddedPostgresError, server_for_tests
from app.dev.removal.command import carry_out
from app.dev.removal.errors import RemovalError
from app.dev.removal.plan import plan as plan_removal
from app.migrations import runner, scripts
from app.migrations.errors import MigrationError

# Tracebacks with local variables would show passwords and keys.
commands = typer.Typer(
    help="Development commands that the Makefile calls.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@commands.command()
def run() -> None:
    """Start the application on its own database."""
    sys.exit(make_run.run())


@commands.command()
def database() -> None:
    """Start only the embedded database and print its URL. Ctrl-C stops it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), make_run.exclusive(), make_run.database(None) as url:
        typer.echo(url.replace("+asyncpg", ""))
        signal.pause()


@commands.command()
def psql() -> None:
    """Start psql on the database of `make run`."""
    sys.exit(tools.psql())


@commands.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
def app(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Run a command of `app` on the database of `make run`."""
    sys.exit(tools.app(arguments or []))


@commands.command()
def shell() -> None:
    """Start a Python prompt with a session, the settings and the services."""
    tools.shell()


@commands.command()
def seed() -> None:
    """Add example data to the database of `make run`."""
    for line in seeds.seed():
        typer.echo(line)


@commands.command()
def reset() -> None:
    """Delete the data of `make run`."""
    typer.echo(tools.reset())


@commands.command()
def docs(*, check: Annotated[bool, typer.Option("--check", help="Only list outdated pages.")] = False) -> None:
    """Write the documentation that is generated from the code."""
    if not check:
        generated_docs.write()
    elif stale := generated_docs.stale():
        _fail(f"Outdated: {', '.join(map(str, stale))}. Run: make docs")


@commands.command()
def migrations() -> None:
    """Print the SQL of all migrations. Fail if a downgrade does not drop the types of its upgrade."""
    sql = runner.sql()
    with scripts.migration_errors():
        leftovers = list(checked_migrations.leftovers())
    if leftovers:
        _fail("\n".join(leftovers))
    sys.stdout.write(sql)


@commands.command()
def migration(name: Annotated[str, typer.Argument(envvar="MIGRATION_NAME")] = "") -> None:
    """Draft a migration from the difference between the models and the migrations."""
    root = generated_docs.ROOT
    with server_for_tests(root) as url:
        for sentence in draft(root, url, name):
            typer.echo(sentence)


@commands.command()
def contracts() -> None:
    """Print import-linter's contracts, which follow from the folders and `FEATURES`."""
    sys.stdout.write(import_contracts.as_toml(import_contracts.contracts(generated_docs.ROOT / "src" / "app")))


@commands.command()
def rename(
    name: Annotated[str, typer.Argument(envvar="PRODUCT_NAME")] = "",
    slug: Annotated[str, typer.Option(envvar="PRODUCT_SLUG", help="Short form. Default: derived from the name.")] = "",
) -> None:
    """Rename the product."""
    changed = renaming.rename(generated_docs.ROOT, name, slug)
    named = renaming.current(generated_docs.ROOT)
    typer.echo(
        f"The product is now called {named.name}, with the short form {named.slug}. Files changed: {len(changed)}"
    )
    for path in changed:
        typer.echo(f"  {path}")


@commands.command()
def remove(
    name: Annotated[str, typer.Argument(envvar="REMOVE_NAME")] = "",
    *,
    deployed: Annotated[
        bool, typer.Option(envvar="REMOVE_DEPLOYED", help="Keep its migrations; drop its tables.")
    ] = False,
    force: Annotated[bool, typer.Option(envvar="REMOVE_FORCE", help="Delete files that are not committed.")] = False,
    dry_run: Annotated[bool, typer.Option(envvar="REMOVE_DRY", help="Only print what would change.")] = False,
) -> None:
    """Remove a feature with its tests, its migrations and its tables in the local database."""
    removal = plan_removal(generated_docs.ROOT, name, is_deployed=deployed, is_forced=force or dry_run)
    sentences = removal.preview() if dry_run else carry_out(removal)
    for sentence in sentences:
        typer.echo(sentence)


def program() -> None:
    """Run a command. An error that a developer can correct is printed without a traceback, with exit code 1 or 2."""
    try:
        commands()
    except (GeneratorError, RemovalError) as error:
        _fail(str(error), code=2)
    except (
        make_run.AlreadyRunningError,
        ConfigurationError,
        DraftError,
        EmbeddedPostgresError,
        MigrationError,
        PortInUseError,
        import_contracts.UnknownModuleError,
        renaming.RenameError,
        seeds.SeedError,
    ) as error:
        _fail(str(error))


def _fail(sentence: str, *, code: int = 1) -> NoReturn:
    typer.echo(sentence, err=True)
    sys.exit(code)


if __name__ == "__main__":
    program()
