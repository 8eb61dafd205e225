"""The error of the generator."""


class GeneratorError(Exception):
    """The feature cannot be generated. The text says why, and what to do."""
