"""``python -m app.dev``: the development commands that the Makefile calls."""

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
    """Development commands that the Makefile calls."""
    # The libpq variables of a developer's shell may refer to another database.
    forget_libpq()


@program.command()
def run() -> None:
    """Start the application on its own database."""
    sys.exit(make_run.run())


@program.command()
def database() -> None:
    """Start only the embedded database and print its URL. Ctrl-C stops it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Cluster(make_run.LOCAL / "postgres") as cluster:
            cluster.create_database(make_run.DATABASE)
            typer.echo(cluster.url(make_run.DATABASE).replace("+asyncpg", ""))
            signal.pause()
    except EmbeddedPostgresError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(0)


@program.command()
def docs(*, check: Annotated[bool, typer.Option("--check", help="Only list outdated pages.")] = False) -> None:
    """Write the documentation that is generated from the code."""
    try:
        if not check:
            generated_docs.write()
        elif stale := generated_docs.stale():
            _fail(f"Outdated: {', '.join(map(str, stale))}. Run: make docs")
    except MigrationError as error:
        _fail(str(error))


@program.command()
def migrations() -> None:
    """Print the SQL of all migrations. Fail if a downgrade does not drop the types of its upgrade."""
    try:
        sql = runner.sql()
        with scripts.migration_errors():
            leftovers = list(checked_migrations.leftovers())
        if leftovers:
            _fail("\n".join(leftovers))
        sys.stdout.write(sql)
    except MigrationError as error:
        _fail(str(error))


@program.command()
def contracts() -> None:
    """Print import-linter's contracts, which follow from the folders and `FEATURES`."""
    try:
        sys.stdout.write(import_contracts.as_toml(import_contracts.contracts(generated_docs.ROOT / "src" / "app")))
    except import_contracts.UnknownModuleError as error:
        _fail(str(error))


@program.command()
def rename(
    name: Annotated[str, typer.Argument(envvar="PRODUCT_NAME")] = "",
    slug: Annotated[str, typer.Option(envvar="PRODUCT_SLUG", help="Short form. Default: derived from the name.")] = "",
) -> None:
    """Rename the product."""
    try:
        changed = renaming.rename(generated_docs.ROOT, name, slug)
    except renaming.RenameError as error:
        _fail(str(error))
    named = renaming.current(generated_docs.ROOT)
    typer.echo(
        f"The product is now called {named.name}, with the short form {named.slug}. Files changed: {len(changed)}"
    )
    for path in changed:
        typer.echo(f"  {path}")


def _fail(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    sys.exit(1)


if __name__ == "__main__":
    program()
