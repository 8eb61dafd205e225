"""The name of the product. Every text that shows it reads it from here. `make rename NAME="Acme Billing"` changes it."""

from importlib.metadata import PackageNotFoundError, version

NAME = "Bedplate"
# The name for programs: the distribution in pyproject.toml, the HTTP realm, defaults of settings. Only a to z, digits and hyphens.
SLUG = "bedplate"
DESCRIPTION = "Accounts, login sessions and the features built on them."
API_VERSION = "1"


def release() -> str:
    """Return the version of the installed distribution, or `unknown` if no distribution is named like the slug."""
    try:
        return version(SLUG)
    except PackageNotFoundError:
        return "unknown"
