"""Imports the models of core and of all features, so that the metadata of `Base` is complete."""

from app import features
from app.core.db.database import Base
from app.core.security import rate_limits

__all__ = ["MODULES", "Base"]

# Importing a module adds its models to the metadata.
MODULES = (rate_limits, *(module for _, module in features.parts("models")))
