"""The HTTP of lists: from cursor to position, from rows to an envelope, and the `Link` to the next page."""

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Depends, Request, Response

from app.core.db.keyset import CursorSigner, Order, Position, binding_of
from app.core.schemas.pages import Page, PageQuery

__all__ = ["Page", "PageQuery", "Pager", "PagerDep"]


class Pager:
    """Turns cursors into positions and rows into pages, for the list that this request asks for."""

    def __init__(self, request: Request, response: Response) -> None:
        self._request = request
        self._response = response
        self._signer: CursorSigner = request.state["cursors"]

    def position(self, query: PageQuery, order: Order) -> Position | None:
        """Tell where the page starts: None is the beginning."""
        if query.cursor is None:
            return None
        return self._signer.decode(query.cursor, order, binding=self._binding(query))

    def page(self, query: PageQuery, rows: Sequence[Any], following: Position | None) -> dict[str, Any]:
        """Wrap the rows; when there are more, also point to them in the `Link` header (RFC 8288)."""
        if following is None:
            return {"items": rows, "next_cursor": None}
        cursor = self._signer.encode(following, binding=self._binding(query))
        parameters = {**_texts(query, exclude={"cursor"}), "cursor": cursor}
        # Encoded: a path holds whatever text came in, a header only ASCII.
        target = f"{quote(self._request.scope['path'])}?{urlencode(parameters)}"
        self._response.headers["Link"] = f'<{target}>; rel="next"'
        return {"items": rows, "next_cursor": cursor}

    def _binding(self, query: PageQuery) -> str:
        return binding_of(self._request.scope["path"], list(_texts(query, exclude={"cursor", "limit"}).items()))


def _texts(query: PageQuery, *, exclude: set[str]) -> dict[str, str]:
    """Write the parameters as they may be given in a query: booleans in lower case."""
    given = query.model_dump(mode="json", exclude=exclude, exclude_none=True)
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


async def get_pager(request: Request, response: Response) -> Pager:
    """Give the pager of a request; the class itself, which is no coroutine, FastAPI would call in a thread."""
    return Pager(request, response)


type PagerDep = Annotated[Pager, Depends(get_pager)]
