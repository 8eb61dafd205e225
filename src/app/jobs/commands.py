"""`app jobs …`: failed jobs."""

from typing import Annotated

import typer

from app.core.commands import command_group, in_transaction, with_database
from app.core.config import Settings
from app.core.db.database import Database
from app.jobs import service
from app.jobs.settings import JobsSettings
from app.settings import load_settings

# PostgreSQL numbers jobs with a bigint.
_LAST_JOB = 2**63 - 1

jobs = command_group("jobs", "Jobs that failed.")
COMMANDS = (jobs,)


def check_worker(settings: Settings) -> str:
    """Return a sentence about the worker of this machine, or raise an error for `app healthcheck --worker`."""
    stalled_after = settings.of(JobsSettings).stalled_after

    async def check(database: Database) -> str:
        async with database.read_sessions() as session:
            return await service.check_worker(session, stalled_after=stalled_after)

    return with_database(settings.database, check)


@jobs.command("failed")
def list_failed_jobs() -> None:
    """List the jobs that failed and will not be retried automatically, one per line."""
    failed = in_transaction(load_settings().database, service.list_failed)
    typer.echo("\n".join(str(job) for job in failed) or "No job has failed.")


@jobs.command("retry")
def retry_jobs(
    ids: Annotated[
        list[int] | None, typer.Argument(min=1, max=_LAST_JOB, help="Ids of jobs, from `app jobs failed`.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Retry all failed jobs.")] = False,
) -> None:
    """Put failed jobs back into the queue. Their attempts are counted from zero again."""
    if bool(ids) == every:
        raise typer.BadParameter("give either the ids of the jobs, or --all")
    put_back = in_transaction(load_settings().database, lambda session: service.retry(session, None if every else ids))
    typer.echo(f"Put back {', '.join(str(number) for number in put_back)}." if put_back else "No job has failed.")
