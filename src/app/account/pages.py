"""The pages that mailed links lead to, for services without a front end. They load nothing but their own script and style.

Opening a page changes nothing, because mail scanners open links. The secret is in the fragment of the link, which browsers do
not send. The script removes it from the address, and sends it when the person presses the button.
"""

import importlib.resources
from functools import cache
from typing import NamedTuple

from fastapi import Response

from app.auth.settings import AuthSettings
from app.core.config import Settings
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import SettingsDep

router = routing.router(prefix="/account")

# Pictures are in the page itself: QR codes, and an empty icon, so that the browser does not ask for one.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class Form(NamedTuple):
    """The form of a page: the script sends the secret to `endpoint`, and what is entered as `member` of the body."""

    title: str
    button: str
    endpoint: str
    member: str = ""
    # The name of a file.
    field: str | None = None


_SET_PASSWORD = Form(
    "Set your password", "Set password", "../api/v1/auth/password/reset", "new_password", "password.html"
)


@router.get("/page.js", include_in_schema=False, openapi_extra=public)
async def read_script() -> Response:
    return Response(_file("page.js"), media_type="text/javascript")


@router.get("/page.css", include_in_schema=False, openapi_extra=public)
async def read_style() -> Response:
    return Response(_file("page.css"), media_type="text/css")


@router.get("/set-password", include_in_schema=False, openapi_extra=public)
async def read_password_page(settings: SettingsDep) -> Response:
    """Show the page a mailed link leads to."""
    return show(_SET_PASSWORD, settings)


def show(form: Form, settings: Settings) -> Response:
    """Return the page with a form. Its own script and style are next to it."""
    min_length = settings.of(AuthSettings).password_min_length
    # The field declares no maxlength: a browser would silently cut a pasted password.
    field = _file(form.field).strip().format(min_length=min_length) if form.field else ""
    return html(_file("page.html").format_map(form._asdict() | {"field": field}))


def html(content: str) -> Response:
    """Return a page that loads only scripts and styles of this origin."""
    return Response(content, media_type="text/html", headers={"Content-Security-Policy": _POLICY})


@cache
def _file(name: str) -> str:
    return (importlib.resources.files("app.account") / "static" / name).read_text("utf-8")
