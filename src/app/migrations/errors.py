"""Errors of migrations."""


class MigrationError(Exception):
    """The schema cannot be changed or read. The text is one sentence with the reason."""


class UnknownRevisionError(MigrationError):
    """The schema is at a revision that has no file here: a newer release, or another branch, has migrated it."""


class MigrationFileError(MigrationError):
    """The migration files do not form one history. The text names the files and says what to do."""
