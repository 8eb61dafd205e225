"""The name of the product: everything that shows it takes it from here. `make rename NAME="Acme Billing"` changes it."""

from importlib.metadata import PackageNotFoundError, version

NAME = "Bedplate"
# For programs: the distribution in pyproject.toml, the realm, and defaults of settings. Letters a to z, digits and hyphens.
SLUG = "bedplate"
DESCRIPTION = "Accounts, login sessions and the features built on them."
API_VERSION = "1"


def release() -> str:
    """Give the version of the installed distribution; `unknown` if no distribution has the slug as its name."""
    try:
        return version(SLUG)
    except PackageNotFoundError:
        return "unknown"
