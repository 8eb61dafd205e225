"""Every feature's models, so that the metadata is whole; a new feature adds its own here."""

from app.core.database import Base
from app.users.models import User

__all__ = ["Base", "User"]
