"""`app jobs …`: failed jobs."""

from typing import Annotated

import typer

from app.core.commands import command_group, in_transaction
from app.jobs import service
from app.settings import load_settings

# PostgreSQL numbers jobs with a bigint.
_LAST_JOB = 2**63 - 1

jobs = command_group("jobs", "Jobs that failed.")
COMMANDS = (jobs,)


@jobs.command("failed")
def list_failed_jobs() -> None:
    """List the jobs that failed and will not be retried automatically, one per line."""
    failed = in_transaction(load_settings().database, service.list_failed)
    typer.echo("\n".join(str(job) for job in failed) or "No job has failed.")


@jobs.command("retry")
def retry_jobs(
    ids: Annotated[
        list[int] | None, typer.Argument(min=1, max=_LAST_JOB, help="Numbers, as `app jobs failed` shows them.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every job that failed.")] = False,
) -> None:
    """Put failed jobs back into the queue. They get all their attempts again."""
    if bool(ids) == every:
        raise typer.BadParameter("name the jobs, or say --all")
    put_back = in_transaction(load_settings().database, lambda session: service.retry(session, None if every else ids))
    typer.echo(f"Put back {', '.join(str(number) for number in put_back)}." if put_back else "No job has failed.")
