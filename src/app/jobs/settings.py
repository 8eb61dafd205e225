"""Settings of background jobs."""

from datetime import timedelta

from pydantic import Field

from app.core.config import Settings
from app.core.config.groups import Duration, SettingsGroup


class JobsSettings(SettingsGroup):
    """Background jobs: mail and scheduled work."""

    in_process: bool | None = Field(
        default=None,
        description="Run jobs inside the web process. Unset: only in local; elsewhere `app worker` runs them.",
    )
    concurrency: int = Field(default=5, ge=1, le=100, description="Jobs that one worker runs at once.")
    poll_interval: Duration = Field(
        default=timedelta(seconds=5),
        description="How often a worker looks for jobs that it was not told of, such as those to be tried again.",
    )
    stalled_after: Duration = Field(
        default=timedelta(seconds=40),
        description="Silence after which a worker is taken for dead and its jobs are given to others. It reports four times as "
        "often.",
    )
    shutdown_grace: Duration = Field(
        default=timedelta(seconds=15),
        description="How long running jobs may take to finish once the worker is told to stop; then they are put back.",
    )
    keep_finished: Duration = Field(default=timedelta(days=1), description="Age at which finished jobs are deleted.")
    keep_failed: Duration = Field(
        default=timedelta(days=90), description="Age at which jobs that have failed for good are deleted."
    )


def runs_in_web_process(settings: Settings) -> bool:
    """Return whether the web process also runs jobs."""
    in_process = settings.of(JobsSettings).in_process
    return settings.environment == "local" if in_process is None else in_process
