"""Pages of lists: converts cursors to positions and rows to pages, and links to the next page."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Depends, Request, Response

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
from app.core.schemas.pages import Page, PageQuery

__all__ = ["Page", "PageQuery", "Pager", "PagerDep"]

type PageReader = Callable[[PageRequest], Awaitable[PageRows]]


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
            parameters = {**_texts(query, exclude={"cursor"}), "cursor": cursor}
            # A path can contain any character, a header only ASCII.
            target = f"{quote(self._request.scope['path'])}?{urlencode(parameters)}"
            self._response.headers["Link"] = f'<{target}>; rel="next"'
        return {"items": rows, "next_cursor": cursor}

    def _position(self, query: PageQuery, order: Order) -> Position | None:
        if query.cursor is None:
            return None
        return self._signer.decode(query.cursor, order, binding=self._binding(query))

    def _binding(self, query: PageQuery) -> str:
        return binding_of(self._request.scope["path"], [*_texts(query, exclude={"cursor", "limit"}).items()])


def _texts(query: PageQuery, *, exclude: set[str]) -> dict[str, str]:
    """Return the parameters as they are written in a URL: booleans in lower case."""
    given = query.model_dump(mode="json", exclude=exclude, exclude_none=True)
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


# A function instead of the class itself: FastAPI would call a class in a thread, because it is no coroutine.
@raises(InvalidCursorError)
async def get_pager(request: Request, response: Response) -> Pager:
    """Return the pager of a request."""
    return Pager(request, response)


type PagerDep = Annotated[Pager, Depends(get_pager)]
