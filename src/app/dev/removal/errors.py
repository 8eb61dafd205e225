"""The error of a removal."""


class RemovalError(Exception):
    """The feature cannot be removed. The text says why, and what to do."""
