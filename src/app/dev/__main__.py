"""``python -m app.dev``: what the Makefile calls."""

import signal
import sys
from typing import Annotated, NoReturn

import typer

from app.core.environment import forget_libpq
from app.dev import contracts as import_contracts
from app.dev import docs as generated_docs
from app.dev import migrations as checked_migrations
from app.dev import rename as renaming
from app.dev import run as make_run
from app.dev.postgres.cluster import Cluster, EmbeddedPostgresError
from app.migrations import runner, scripts
from app.migrations.errors import MigrationError

# Tracebacks with local variables would show passwords and keys.
program = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@program.callback()
def commands() -> None:
    """What the Makefile calls."""
    # In a developer's shell they mean another database.
    forget_libpq()


@program.command()
def run() -> None:
    """Start the application on a database of its own."""
    sys.exit(make_run.run())


@program.command()
def database() -> None:
    """Start only the embedded database and print its URL, until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Cluster(make_run.LOCAL / "postgres") as cluster:
            cluster.make_database(make_run.DATABASE)
            typer.echo(cluster.url(make_run.DATABASE).replace("+asyncpg", ""))
            signal.pause()
    except EmbeddedPostgresError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(0)


@program.command()
def docs(*, check: Annotated[bool, typer.Option("--check", help="Only say what is out of date.")] = False) -> None:
    """Write the documentation that comes from the code."""
    try:
        if not check:
            generated_docs.write()
        elif stale := generated_docs.stale():
            _refuse(f"Out of date: {', '.join(map(str, stale))}. Write it again with: make docs")
    except MigrationError as error:
        _refuse(str(error))


@program.command()
def migrations() -> None:
    """Print the SQL of all migrations, unless one of them leaves a type behind when it is undone."""
    try:
        sql = runner.sql()
        with scripts.telling():
            leftovers = list(checked_migrations.leftovers())
        if leftovers:
            _refuse("\n".join(leftovers))
        sys.stdout.write(sql)
    except MigrationError as error:
        _refuse(str(error))


@program.command()
def contracts() -> None:
    """Print import-linter's contracts, which follow from the folders and `FEATURES`."""
    try:
        sys.stdout.write(import_contracts.as_toml(import_contracts.contracts(generated_docs.ROOT / "src" / "app")))
    except import_contracts.UnknownModuleError as error:
        _refuse(str(error))


@program.command()
def rename(
    name: Annotated[str, typer.Argument(envvar="PRODUCT_NAME")] = "",
    slug: Annotated[str, typer.Option(envvar="PRODUCT_SLUG", help="Short form; made from the name unless given.")] = "",
) -> None:
    """Give the product another name."""
    try:
        changed = renaming.rename(generated_docs.ROOT, name, slug)
    except renaming.RenameError as error:
        _refuse(str(error))
    named = renaming.current(generated_docs.ROOT)
    typer.echo(f"The product is called {named.name}, and {named.slug} in programs. Files changed: {len(changed)}")
    for path in changed:
        typer.echo(f"  {path}")


def _refuse(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    sys.exit(1)


if __name__ == "__main__":
    program()
