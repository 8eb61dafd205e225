"""Schemas of lists: the query parameters that all lists share, and the envelope of one page."""

from typing import Any, override

from pydantic import BaseModel, ConfigDict, Field

from app.core.schemas.fields import QueryInteger

MAX_LIMIT = 100


class PageQuery(BaseModel):
    """Query parameters of every list. The query model of a feature adds its filters and its `sort`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: QueryInteger = Field(default=50, ge=1, le=MAX_LIMIT, description="How many items to return at most.")
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before.")


class Page[T](BaseModel):
    """One page of a list."""

    items: list[T]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last.")

    @classmethod
    @override
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        # Generated clients use this name: `UserPage` instead of `Page_UserRead_`.
        name: str = params[0].__name__
        return f"{name.removesuffix('Read')}Page"
