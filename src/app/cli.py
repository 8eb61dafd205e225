"""`app serve | worker | migrate | jobs … | users … | sessions … | keys …`: each builds settings and calls one service."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from app.auth.cutoff import end_every_session
from app.auth.schemas import Registration
from app.core import product
from app.core.config import Settings, load_settings
from app.core.db.database import Database, WriteSession
from app.core.db.failures import DatabaseUnavailableError, reason
from app.core.errors import AppError, ConfigurationError, FieldError, InvalidInputError
from app.core.listening import PortInUseError
from app.core.refusals import detail_of
from app.core.security import rotation
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import generate_key_set
from app.jobs import service as jobs_service
from app.loading import loading
from app.migrations.errors import MigrationError
from app.server.supervisor import WorkerError
from app.users import service as users_service
from app.users.links import LIFETIMES as LINK_LIFETIMES

# Jobs are counted by a bigint.
_LAST_JOB = 2**63 - 1
# Plain help: loading rich would double the time that it takes.
cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
users = typer.Typer(no_args_is_help=True, help="Accounts.", rich_markup_mode=None)
keys = typer.Typer(no_args_is_help=True, help="Signing keys.", rich_markup_mode=None)
sessions = typer.Typer(no_args_is_help=True, help="Login sessions.", rich_markup_mode=None)
jobs = typer.Typer(no_args_is_help=True, help="Jobs that failed.", rich_markup_mode=None)
cli.add_typer(users, name="users")
cli.add_typer(jobs, name="jobs")
cli.add_typer(keys, name="keys")
cli.add_typer(sessions, name="sessions")


@cli.callback(help=f"{product.NAME}. {product.DESCRIPTION} Settings: docs/configuration.md.")
def commands() -> None:
    pass


@cli.command()
def serve(
    workers: Annotated[
        int | None, typer.Option(min=1, max=128, help="Processes that share the port; SIGHUP renews them one by one.")
    ] = None,
) -> None:
    """Serve the API until SIGINT or SIGTERM."""
    if workers is not None:
        # An option is a setting like any other, and told like one when it is wrong.
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


@cli.command()
def migrate(
    to: Annotated[
        str, typer.Option(help="Where to go: a revision, `head`, `base`, or steps such as `-1` and `+1`.")
    ] = "head",
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL from nothing to there, and change nothing.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say whether the schema is the newest.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only list the migrations, and say which have run.")] = False,
) -> None:
    """Bring the database's schema to a revision."""
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


@users.command("create-admin")
def create_admin(
    email: str,
    full_name: Annotated[str | None, typer.Option(help="The name to show.")] = None,
) -> None:
    """Create an administrator; the password is asked for, or read from standard input."""
    settings = load_settings()
    account = _validated(email, _ask_password(), full_name)
    user_id = asyncio.run(_create_admin(settings, account))
    typer.echo(f"Created administrator {email} ({user_id}).")


def _validated(email: str, password: str, full_name: str | None) -> Registration:
    """Apply the rules of a registration over HTTP."""
    try:
        return Registration.model_validate({"email": email, "password": password, "full_name": full_name})
    except ValidationError as error:
        refused = (FieldError(f"#/{one['loc'][0]}", one["type"], detail_of(one)) for one in error.errors())
        raise InvalidInputError(*refused) from error


async def _create_admin(settings: Settings, account: Registration) -> str:
    database = Database(settings.database)
    hasher = PasswordHasher(settings.auth)
    try:
        async with database.begin() as session:
            user = await users_service.create_admin(
                session,
                hasher,
                email=account.email,
                password=account.password.get_secret_value(),
                full_name=account.full_name,
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
    ids: Annotated[
        list[int] | None, typer.Argument(min=1, max=_LAST_JOB, help="Numbers, as `app jobs failed` shows them.")
    ] = None,
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
    async def within(database: Database) -> T:
        async with database.begin() as session:
            return await call(session)

    return await _with_database(settings, within)


async def _with_database[T](settings: Settings, call: Callable[[Database], Awaitable[T]]) -> T:
    database = Database(settings.database)
    try:
        return await call(database)
    finally:
        await database.dispose()


@sessions.command("revoke-all")
def revoke_all_sessions(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Log everybody out, at once and everywhere: no token issued before works, and a new login does."""
    settings = load_settings()
    if not yes:
        typer.confirm("Everybody has to log in again. Go on?", abort=True)
    ended = asyncio.run(_with_database(settings, end_every_session))
    typer.echo(f"Ended {ended} login session{'' if ended == 1 else 's'}.")


@keys.command("generate")
def generate_keys(
    file: Annotated[Path, typer.Argument(help="File to make; it must not exist. Keep it secret and backed up.")],
    algorithm: Annotated[Literal["ES256", "EdDSA"], typer.Option(help="What access tokens are signed with.")] = "ES256",
) -> None:
    """Make a private key set: a key that access tokens are signed with, and a pepper for all other tokens."""
    # O_EXCL: keys are never overwritten, and nobody else can read them, not even for a moment.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as output:
        output.write(generate_key_set(algorithm))
    typer.echo(f"Wrote {file}; set APP_AUTH__SIGNING_KEYS_FILE to it.")


@keys.command("list")
def list_keys() -> None:
    """Say of each key where it stands: next, active, retiring."""
    typer.echo("\n".join(str(key) for key in rotation.listed(load_settings().auth)))


@keys.command("add")
def add_key(
    kind: Annotated[Literal["signing", "pepper"], typer.Argument(help="What is to be rotated.")],
    algorithm: Annotated[Literal["ES256", "EdDSA"], typer.Option(help="Of a signing key.")] = "ES256",
) -> None:
    """Make the next key known, which `app keys retire` will let take over."""
    with rotation.changing(load_settings().auth) as stored:
        kid = rotation.add(stored, kind, algorithm)
    ready = datetime.now(UTC) + rotation.LEAD[kind]
    typer.echo(f"Added {kid}, known from now on; it can take over at {ready:%Y-%m-%d %H:%M}Z.")


@keys.command("retire")
def retire_key(
    kid: Annotated[str, typer.Argument(help="Id of the active key, as `app keys list` shows it.")],
    force: Annotated[
        bool, typer.Option("--force", help="Though the next one may not be known everywhere yet.")
    ] = False,
) -> None:
    """Let the next key take over; what was made with this one goes on being good."""
    with rotation.changing(load_settings().auth) as stored:
        successor = rotation.retire(stored, kid, force=force)
    typer.echo(f"{successor} is active now; {kid} is retiring, and can be removed once no token made with it is alive.")


@keys.command("remove")
def remove_key(
    kid: Annotated[str, typer.Argument(help="Id of a key that is not active.")],
    force: Annotated[bool, typer.Option("--force", help="Though tokens made with it may be alive.")] = False,
) -> None:
    """Remove a key; every token that was made with it is refused from then on."""
    auth = load_settings().auth
    # A session that goes on is moved to the active pepper when it is refreshed.
    live = max(auth.refresh_idle_ttl, *LINK_LIFETIMES.values())
    with rotation.changing(auth) as stored:
        rotation.remove(stored, kid, refresh_tokens_live=live, force=force)
    typer.echo(f"Removed {kid}.")


def main() -> None:
    """Run a command; whatever an operator can do something about is a sentence and exit code 1, not a traceback."""
    try:
        cli()
    except InvalidInputError as error:
        _stop(" ".join(f"{_argument(one)}: {one.detail}" for one in error.errors))
    except DatabaseUnavailableError as error:
        _stop(f"cannot reach the database: {reason(error.__cause__ or error)}")
    except AppError as error:
        _stop(error.detail)
    except UnicodeError:
        _stop("what was given is not UTF-8")
    except DBAPIError as error:
        _stop(f"the database refused: {reason(error.orig or error)}; `app migrate --check` tells if the schema is old")
    except OSError as error:
        _stop(f"{error.filename or 'system'}: {os.strerror(error.errno or 0)}")
    except (
        ConfigurationError,
        PortInUseError,
        WorkerError,
        rotation.KeyChangeError,
        MigrationError,
    ) as error:
        _stop(str(error))


def _argument(error: FieldError) -> str:
    return error.pointer.removeprefix("#/").replace("_", "-")


def _stop(sentence: str) -> None:
    typer.echo(f"app: {sentence}", err=True)
    sys.exit(1)
