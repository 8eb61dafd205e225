"""Parameters about accounts that the endpoints of several features share."""

from typing import Annotated

from fastapi import Path

from app.core.schemas.fields import PathIdentifier

type UserId = Annotated[PathIdentifier, Path(description="The account's id.")]
