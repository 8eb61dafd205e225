"""Errors of migrations."""


class MigrationError(Exception):
    """The schema cannot be changed or read. The text is one sentence with the reason."""


class MigrationFileError(MigrationError):
    """The migration files do not form one history. The text names the files and says what to do."""
