"""Errors of migrations."""


class MigrationError(Exception):
    """The schema cannot be changed or read; the text says why, in one sentence."""


class MigrationFileError(MigrationError):
    """The migration files do not make one history; the text names the files and says what to do."""
