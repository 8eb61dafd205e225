"""The schemas of lists: the parameters every one takes, the envelope every one answers with."""

from typing import Any, override

from pydantic import BaseModel, ConfigDict, Field

from app.core.schemas.fields import QueryInteger

MAX_LIMIT = 100


class PageQuery(BaseModel):
    """The parameters of every list; a feature's own query model adds its filters and its `sort`."""

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
        # What generated clients call it: `UserPage`, not `Page_UserRead_`.
        name: str = params[0].__name__
        return f"{name.removesuffix('Read')}Page"
