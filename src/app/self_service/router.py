"""Pages with which owners log in and manage their accounts. They call the API as any other page of this origin does."""

from functools import cache
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated

from fastapi import Query, Response
from pydantic import StringConstraints

from app.account import pages
from app.auth.settings import AuthSettings
from app.core import product
from app.core.config import Settings
from app.core.errors import NotFoundError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import SettingsDep
from app.core.http.problems import problem_responses
from app.core.schemas.fields import Plain, ShortText

router = routing.router(prefix="/account")
ROOT_ROUTERS = (router,)

_DIRECTORY = Path(__file__).parent / "static"
_TYPES = {".js": "text/javascript", ".css": "text/css"}

# The script of the page reads it.
type Next = Annotated[Annotated[str, StringConstraints(max_length=2048), Plain] | None, Query(alias="next")]


@router.get("/login", include_in_schema=False, openapi_extra=public)
async def read_login_page(settings: SettingsDep, _next: Next = None) -> Response:
    """Show the login. `next` is the path of the page that follows."""
    return _page("login", settings)


@router.get("/forgot-password", include_in_schema=False, openapi_extra=public)
async def read_forgot_password_page(settings: SettingsDep) -> Response:
    """Show the form that asks for a mail with a link to set a new password."""
    return _page("forgot-password", settings)


@router.get("/security", include_in_schema=False, openapi_extra=public)
async def read_security_page(settings: SettingsDep) -> Response:
    """Show the page with everything about the own account. Its data come from the API."""
    return _page("security", settings)


@router.get("/assets/{name}", include_in_schema=False, openapi_extra=public, responses=problem_responses(NotFoundError))
async def read_asset(name: ShortText) -> Response:
    """Return a script or a style."""
    if name not in _assets():
        raise NotFoundError
    return Response(_file(name), media_type=_TYPES[Path(name).suffix])


def _page(name: str, settings: Settings) -> Response:
    min_length = settings.of(AuthSettings).password_min_length
    return pages.html(Template(_file(f"{name}.html")).substitute(product=escape(product.NAME), min_length=min_length))


@cache
def _assets() -> frozenset[str]:
    return frozenset(path.name for path in _DIRECTORY.iterdir() if path.suffix in _TYPES)


@cache
def _file(name: str) -> str:
    return (_DIRECTORY / name).read_text("utf-8")
