"""The query of the list."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from app.core.schemas.fields import QueryIdentifier, QueryInstant
from app.core.schemas.pages import PageQuery

EventName = Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z_]+\.[a-z_]+$")]


class AuditEventQuery(PageQuery):
    """Filters and order of the list."""

    actor_id: QueryIdentifier | None = Field(default=None, description="Only events with this account as the actor.")
    subject_id: QueryIdentifier | None = Field(default=None, description="Only events that affect this account.")
    event: EventName | None = Field(default=None, description="Only events with this name.")
    after: QueryInstant | None = Field(default=None, description="Only events later than this instant.")
    before: QueryInstant | None = Field(default=None, description="Only events earlier than this instant.")
    sort: Literal["-occurred_at", "occurred_at"] = Field(
        default="-occurred_at", description="Sort order; a minus sign means newest first."
    )
