"""Settings for background jobs."""

from datetime import timedelta

from pydantic import Field

from app.core.config import Settings
from app.core.config.groups import Duration, SettingsGroup


class JobsSettings(SettingsGroup):
    """Background jobs."""

    in_process: bool | None = None
    """Run jobs inside the web process instead of `app worker`. Unset: `true` if the environment is `local`."""
    concurrency: int = Field(default=5, ge=1, le=100)
    """Maximum number of jobs that a worker runs at the same time."""
    poll_interval: Duration = timedelta(seconds=5)
    """Interval at which a worker queries for jobs without a notification, such as jobs that are due for a retry."""
    stalled_after: Duration = timedelta(seconds=40)
    """Time without a heartbeat after which a worker counts as dead. Other workers then run its jobs. The heartbeat
    interval is a quarter of this time."""
    shutdown_grace: Duration = timedelta(seconds=15)
    """Time for running jobs to finish after the worker gets SIGTERM. The others then go back to the queue."""
    keep_finished: Duration = timedelta(days=1)
    """Age after which finished jobs are deleted."""
    keep_failed: Duration = timedelta(days=90)
    """Age after which jobs that failed permanently are deleted."""


def runs_in_web_process(settings: Settings) -> bool:
    in_process = settings.of(JobsSettings).in_process
    return settings.environment == "local" if in_process is None else in_process
