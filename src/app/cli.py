"""The `app` command: serve, worker, healthcheck, backup-check, migrate, features, and the commands of each feature."""

import asyncio
import os
import sys
from typing import Annotated

import typer
from sqlalchemy.exc import DBAPIError

from app import features, healthcheck
from app.core import product
from app.core.commands import command_group
from app.core.db.failures import DatabaseUnavailableError, reason
from app.core.errors import AppError, ConfigurationError, FieldError, InvalidInputError
from app.core.listening import PortInUseError
from app.core.security import rotation
from app.loading import loading
from app.migrations.errors import MigrationError
from app.server.supervisor import WorkerError
from app.settings import load_settings

# No rich markup: importing rich would double the time of `--help`.
cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _add_commands() -> None:
    """Add the commands in `COMMANDS` of each feature's `commands.py`. Features that declare a group of one name share it."""
    groups: dict[str, typer.Typer] = {}
    for feature, module in features.parts("commands"):
        for group in module.COMMANDS:
            shared = groups.setdefault(group.info.name, command_group(group.info.name, group.info.help))
            _refuse_repeated(feature, shared, group)
            shared.registered_commands += group.registered_commands
    for group in groups.values():
        cli.add_typer(group)


def _refuse_repeated(feature: str, shared: typer.Typer, group: typer.Typer) -> None:
    taken = {command.name for command in shared.registered_commands}
    if repeated := [str(command.name) for command in group.registered_commands if command.name in taken]:
        message = f"another feature already has the command {group.info.name} {repeated[0]}; rename it in app.{feature}.commands"
        raise ValueError(message)


_add_commands()


@cli.callback(help=f"{product.NAME}. {product.DESCRIPTION} Settings: docs/configuration.md.")
def app() -> None:
    pass


@cli.command()
def serve(
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=128, help="Number of worker processes. SIGHUP replaces them one by one."),
    ] = None,
) -> None:
    """Serve the API until SIGINT or SIGTERM."""
    if workers is not None:
        # As a setting, the option is validated and reported together with the other settings.
        os.environ["APP_SERVER__WORKERS"] = str(workers)
    with loading():
        from app.server.serve import serve

    serve(load_settings())


@cli.command("worker")
def run_worker() -> None:
    """Run jobs, such as sending mail, until SIGINT or SIGTERM."""
    with loading():
        from app import worker

    worker.work(load_settings())


@cli.command("healthcheck")
def check_health(
    worker: Annotated[
        bool,
        typer.Option("--worker", help="Look for a recent heartbeat of this machine's `app worker` in the database."),
    ] = False,
) -> None:
    """Ask the server on this machine whether it is ready. Exit with 0 or 1."""
    if not worker:
        typer.echo(healthcheck.check_server())
        return
    with loading():
        from app.jobs import commands

    typer.echo(commands.check_worker(load_settings()))


@cli.command("backup-check")
def check_backup() -> None:
    """Check whether this release and its keys can serve a database that was restored from a backup. Exit with 0 or 1."""
    with loading():
        from app import backup

    report = backup.check(load_settings())
    typer.echo("\n".join(report.facts))
    if report.problems:
        _stop("\napp: ".join(report.problems))
    typer.echo("This release can serve the database with these keys.")


@cli.command()
def migrate(
    to: Annotated[
        str, typer.Option(help="Target: a revision, `head`, `base`, or a number of steps such as `-1` and `+1`.")
    ] = "head",
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL of all migrations up to the target. This changes nothing.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only check whether the schema is current.")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Only list the migrations and whether they have run.")
    ] = False,
) -> None:
    """Upgrade or downgrade the database schema to a revision."""
    if sum((sql, check, status)) > 1:
        raise typer.BadParameter("choose one of --sql, --check and --status")
    with loading():
        from app.migrations import runner

    if sql:
        sys.stdout.write(runner.sql(to))
    elif check:
        typer.echo(asyncio.run(runner.check(load_settings().database)))
    elif status:
        typer.echo(asyncio.run(runner.status(load_settings().database)))
    else:
        typer.echo(asyncio.run(runner.upgrade(load_settings().database, to)))


@cli.command("features")
def list_features() -> None:
    """List the features, lowest first, with the parts of each."""
    for feature in features.names():
        found = [part for part in features.PARTS if features.has(feature, part)]
        typer.echo(f"{feature:<12} {' '.join(found)}")


def main() -> None:
    """Run a command. An error that an operator can fix is printed as one line, with exit code 1."""
    try:
        cli()
    except InvalidInputError as error:
        _stop(" ".join(f"{_argument(one)}: {one.detail}" for one in error.errors))
    except DatabaseUnavailableError as error:
        _stop(f"cannot reach the database: {reason(error.__cause__ or error)}")
    except AppError as error:
        _stop(error.detail)
    except UnicodeError:
        _stop("the input is not valid UTF-8")
    except DBAPIError as error:
        _stop(f"database error: {reason(error.orig or error)}; check the schema with `app migrate --check`")
    except OSError as error:
        _stop(f"{error.filename or 'system'}: {os.strerror(error.errno or 0)}")
    except (
        ConfigurationError,
        PortInUseError,
        WorkerError,
        healthcheck.UnhealthyError,
        rotation.KeyChangeError,
        MigrationError,
    ) as error:
        _stop(str(error))


def _argument(error: FieldError) -> str:
    return error.pointer.removeprefix("#/").replace("_", "-")


def _stop(sentence: str) -> None:
    typer.echo(f"app: {sentence}", err=True)
    sys.exit(1)
