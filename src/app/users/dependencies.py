"""Path parameters for accounts, which endpoints of several features use."""

from typing import Annotated

from fastapi import Path

from app.core.schemas.fields import PathIdentifier

type UserId = Annotated[PathIdentifier, Path(description="The account's id.")]
