"""What a job can say about its failure."""


class PermanentError(Exception):
    """Trying again would not help: the job is dead at once, and stays visible to `app jobs failed`."""


class TemporaryError(Exception):
    """Something outside is away: the job is tried again, and its log line needs no traceback."""
