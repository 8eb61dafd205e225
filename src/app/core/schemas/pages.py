"""Schemas of lists: the query parameters that all lists share, and the envelope of one page."""

from typing import Annotated, Any, override

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.core.schemas.fields import QueryInteger

MAX_LIMIT = 100
# The database reads the skipped rows, and reads the counted ones again, so these limit the cost of a page.
MAX_OFFSET = 10_000
MAX_TOTAL = 10_000

_TOO_LARGE = f"This list skips at most {MAX_OFFSET:,} items. Narrow it with its filters. Only lists with a cursor can be read whole."
_LIMIT = "How many items to return at most."


def _refuse_too_large(offset: int) -> int:
    if offset > MAX_OFFSET:
        raise PydanticCustomError("offset_too_large", _TOO_LARGE, {"ours": True})
    return offset


class PageQuery(BaseModel):
    """Query parameters of every list. The query model of a feature adds its filters and its `sort`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: QueryInteger = Field(default=50, ge=1, le=MAX_LIMIT, description=_LIMIT)
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before.")


class OffsetQuery(BaseModel):
    """Query parameters of a list with page numbers and a total, for small tables. Prefer `PageQuery`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: QueryInteger = Field(default=50, ge=1, le=MAX_LIMIT, description=_LIMIT)
    offset: Annotated[QueryInteger, AfterValidator(_refuse_too_large)] = Field(
        default=0, ge=0, description="How many items to skip.", json_schema_extra={"maximum": MAX_OFFSET}
    )


class Page[T](BaseModel):
    """One page of a list."""

    items: list[T]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last.")

    @classmethod
    @override
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        # Generated clients use this name: `UserPage` instead of `Page_UserRead_`.
        return f"{_item_name(params)}Page"


class OffsetPage[T](BaseModel):
    """One page of a list with a total."""

    items: list[T]
    total: int | None = Field(description=f"Number of items on all pages; null if there are more than {MAX_TOTAL:,}.")

    @classmethod
    @override
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        return f"{_item_name(params)}OffsetPage"


def _item_name(params: tuple[Any, ...]) -> str:
    name: str = params[0].__name__
    return name.removesuffix("Read")
