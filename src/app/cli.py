"""`app serve | worker | migrate | jobs … | users … | keys …`: each builds settings, calls one service, commits."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import DBAPIError

from app import server, worker
from app.core.config import Settings, load_settings
from app.core.database import Database, DatabaseUnavailableError, WriteSession
from app.core.errors import AppError, ConfigurationError, InvalidInputError
from app.core.keys import generate_key_set
from app.core.listening import PortInUseError
from app.core.security import PasswordHasher
from app.jobs import service as jobs_service
from app.migrations import runner
from app.users import service as users_service
from app.users.emails import InvalidEmailError

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
users = typer.Typer(no_args_is_help=True, help="Accounts.")
keys = typer.Typer(no_args_is_help=True, help="Signing keys.")
jobs = typer.Typer(no_args_is_help=True, help="Jobs that failed.")
cli.add_typer(users, name="users")
cli.add_typer(jobs, name="jobs")
cli.add_typer(keys, name="keys")


@cli.callback()
def bedplate() -> None:
    """Bedplate: accounts, login sessions and whatever is built on them. Settings: docs/configuration.md."""


@cli.command()
def serve() -> None:
    """Serve the API until SIGINT or SIGTERM."""
    server.serve(load_settings())


@cli.command("worker")
def run_worker() -> None:
    """Run jobs, such as sending mail, until SIGINT or SIGTERM."""
    worker.work(load_settings())


@cli.command()
def migrate(
    to: Annotated[str, typer.Option(help="Revision to go to, forward or back: a revision, `head` or `base`.")] = "head",
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL from nothing to there, and change nothing.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say whether the schema is the newest.")] = False,
) -> None:
    """Bring the database's schema to a revision."""
    if sql:
        sys.stdout.write(runner.sql(to))
    elif check:
        asyncio.run(runner.check(load_settings().database))
    else:
        asyncio.run(runner.upgrade(load_settings().database, to))


@users.command("create-admin")
def create_admin(
    email: str,
    full_name: Annotated[str | None, typer.Option(help="The name to show.")] = None,
) -> None:
    """Create an administrator; the password is asked for, or read from standard input."""
    settings = load_settings()
    password = _ask_password()
    user_id = asyncio.run(_create_admin(settings, email, password, full_name))
    typer.echo(f"Created administrator {email} ({user_id}).")


async def _create_admin(settings: Settings, email: str, password: str, full_name: str | None) -> str:
    database = Database(settings.database)
    hasher = PasswordHasher(settings.auth)
    try:
        async with database.begin() as session:
            user = await users_service.create_admin(
                session,
                hasher,
                email=email,
                password=password,
                full_name=full_name,
                min_length=settings.auth.password_min_length,
            )
        return str(user.id)
    finally:
        hasher.close()
        await database.dispose()


def _ask_password() -> str:
    if sys.stdin.isatty():
        answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        return answer
    return sys.stdin.readline().rstrip("\n")


@jobs.command("failed")
def list_failed_jobs() -> None:
    """List the jobs that will not be tried again by themselves, one a line."""
    failed = asyncio.run(_in_transaction(load_settings(), jobs_service.list_failed))
    typer.echo("\n".join(str(job) for job in failed) or "No job has failed.")


@jobs.command("retry")
def retry_jobs(
    ids: Annotated[list[int] | None, typer.Argument(help="Numbers, as `app jobs failed` shows them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every job that failed.")] = False,
) -> None:
    """Put failed jobs back into the queue, with all their attempts."""
    if bool(ids) == every:
        raise typer.BadParameter("name the jobs, or say --all")
    put_back = asyncio.run(
        _in_transaction(load_settings(), lambda session: jobs_service.retry(session, None if every else ids))
    )
    typer.echo(f"Put back {', '.join(str(number) for number in put_back)}." if put_back else "No job has failed.")


async def _in_transaction[T](settings: Settings, call: Callable[[WriteSession], Awaitable[T]]) -> T:
    database = Database(settings.database)
    try:
        async with database.begin() as session:
            return await call(session)
    finally:
        await database.dispose()


@keys.command("generate")
def generate_keys(
    file: Annotated[Path, typer.Argument(help="File to make; it must not exist. Keep it secret and backed up.")],
) -> None:
    """Make the private key set that access tokens are signed with."""
    # O_EXCL: keys are never overwritten, and nobody else can read them, not even for a moment.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as output:
        output.write(generate_key_set())
    typer.echo(f"Wrote {file}; set APP_AUTH__SIGNING_KEYS_FILE to it.")


def main() -> None:
    """Run a command; whatever an operator can do something about is a sentence and exit code 1, not a traceback."""
    try:
        cli()
    except InvalidInputError as error:
        _stop(" ".join(one.detail for one in error.errors))
    except DatabaseUnavailableError as error:
        _stop(f"cannot reach the database: {runner.reason(error.__cause__ or error)}")
    except AppError as error:
        _stop(error.detail)
    except InvalidEmailError:
        _stop("this is not an email address")
    except UnicodeError:
        _stop("what was given is not UTF-8")
    except DBAPIError as error:
        _stop(
            f"the database refused: {runner.reason(error.orig or error)}; `app migrate --check` tells if the schema is old"
        )
    except OSError as error:
        _stop(f"{error.filename or 'system'}: {os.strerror(error.errno or 0)}")
    except (ConfigurationError, runner.MigrationError, PortInUseError) as error:
        _stop(str(error))


def _stop(sentence: str) -> None:
    typer.echo(f"app: {sentence}", err=True)
    sys.exit(1)
