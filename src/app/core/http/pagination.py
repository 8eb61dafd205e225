"""Pages of lists: converts cursors to positions and rows to pages, and links to other pages."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Depends, Request, Response

from app.core.db.crud import OffsetRequest, OffsetRows
from app.core.db.keyset import (
    CursorSigner,
    InvalidCursorError,
    Order,
    PageRequest,
    PageRows,
    Position,
    binding_of,
)
from app.core.http.problems import raises
from app.core.schemas.pages import MAX_OFFSET, OffsetPage, OffsetQuery, Page, PageQuery

__all__ = ["OffsetPage", "OffsetQuery", "Page", "PageQuery", "Pager", "PagerDep"]

type PageReader = Callable[[PageRequest], Awaitable[PageRows]]
type OffsetPageReader = Callable[[OffsetRequest], Awaitable[OffsetRows]]


class Pager:
    """Reads one page of the list that a request asks for."""

    def __init__(self, request: Request, response: Response) -> None:
        self._request = request
        self._response = response
        self._signer: CursorSigner = request.state["cursors"]

    async def list(self, query: PageQuery, order: Order, read: PageReader) -> dict[str, Any]:
        """Return a page. If more rows follow, the page has a cursor, and the `Link` header points to the next page (RFC 8288)."""
        rows, last = await read(PageRequest(order, query.limit, self._position(query, order)))
        cursor = None if last is None else self._signer.encode(last, binding=self._binding(query))
        if cursor is not None:
            self._response.headers["Link"] = self._link("next", query, cursor=cursor)
        return {"items": rows, "next_cursor": cursor}

    async def list_by_offset(self, query: OffsetQuery, order: Order, read: OffsetPageReader) -> dict[str, Any]:
        """Return a page with a total. The `Link` header points to the first, previous, next and last page."""
        rows, total = await read(OffsetRequest(order, query.limit, query.offset))
        links = (self._link(name, query, offset=offset) for name, offset in _offsets(query, len(rows), total))
        self._response.headers["Link"] = ", ".join(links)
        return {"items": rows, "total": total}

    def _link(self, relation: str, query: PageQuery | OffsetQuery, **changed: object) -> str:
        parameters = {**_texts(query, exclude=set(changed)), **changed}
        # A path can contain any character, a header only ASCII.
        target = f"{quote(self._request.scope['path'])}?{urlencode(parameters)}"
        return f'<{target}>; rel="{relation}"'

    def _position(self, query: PageQuery, order: Order) -> Position | None:
        if query.cursor is None:
            return None
        return self._signer.decode(query.cursor, order, binding=self._binding(query))

    def _binding(self, query: PageQuery) -> str:
        return binding_of(self._request.scope["path"], [*_texts(query, exclude={"cursor", "limit"}).items()])


def _offsets(query: OffsetQuery, found: int, total: int | None) -> Iterator[tuple[str, int]]:
    """Yield the link relations of a page and their offsets. With an unknown total there is no last page."""
    following, previous = query.offset + query.limit, max(query.offset - query.limit, 0)
    last = None if total is None else max(total - 1, 0) // query.limit * query.limit
    yield "first", 0
    if query.offset:
        yield "prev", previous if last is None else min(previous, last)
    if following <= MAX_OFFSET and (found == query.limit if total is None else following < total):
        yield "next", following
    if last is not None:
        yield "last", last


def _texts(query: PageQuery | OffsetQuery, *, exclude: set[str]) -> dict[str, str]:
    """Return the parameters as they are written in a URL: booleans in lower case."""
    given = query.model_dump(mode="json", exclude=exclude, exclude_none=True)
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


# A function instead of the class itself: FastAPI would call a class in a thread, because it is no coroutine.
@raises(InvalidCursorError)
async def get_pager(request: Request, response: Response) -> Pager:
    """Return the pager of a request."""
    return Pager(request, response)


type PagerDep = Annotated[Pager, Depends(get_pager)]
