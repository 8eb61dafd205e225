"""Body of a registration."""

from app.account.schemas import NewAccount


class Registration(NewAccount):
    """A new account."""
