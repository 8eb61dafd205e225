"""What can go wrong with a schema."""


class MigrationError(Exception):
    """The schema could not be changed or read; the text says why, in one sentence."""
