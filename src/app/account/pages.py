"""The pages that mailed links lead to, for services without a front end. They load nothing but their own script and style.

Opening a page changes nothing, because mail scanners open links. The secret is in the fragment of the link, which browsers do
not send. The script removes it from the address, and sends it when the person presses the button.
"""

import importlib.resources
from functools import cache
from typing import NamedTuple

from fastapi import Response

from app.auth.settings import AuthSettings
from app.core.errors import NotFoundError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import SettingsDep

router = routing.router(prefix="/account")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_ASSETS = {"page.js": "text/javascript", "page.css": "text/css"}


class _Form(NamedTuple):
    """The form of a page: the script sends the secret to `endpoint`, and what is entered as `member` of the body."""

    title: str
    button: str
    endpoint: str
    member: str = ""
    # The name of a file.
    field: str | None = None


_FORMS = {
    "verify-email": _Form("Verify your address", "Verify", "../api/v1/auth/verify-email"),
    "confirm-email": _Form("Confirm your new address", "Confirm", "../api/v1/auth/email/confirm"),
    "set-password": _Form(
        "Set your password", "Set password", "../api/v1/auth/password/reset", "new_password", "password.html"
    ),
}


@router.get("/{name}", include_in_schema=False, openapi_extra=public)
async def read_page(settings: SettingsDep, name: str) -> Response:
    """Show the page a mailed link leads to."""
    if name in _ASSETS:
        return Response(_file(name), media_type=_ASSETS[name])
    if name not in _FORMS:
        raise NotFoundError
    form, min_length = _FORMS[name], settings.of(AuthSettings).password_min_length
    # The field declares no maxlength: a browser would silently cut a pasted password.
    field = _file(form.field).strip().format(min_length=min_length) if form.field else ""
    content = _file("page.html").format_map(form._asdict() | {"field": field})
    return Response(content, media_type="text/html", headers={"Content-Security-Policy": _POLICY})


@cache
def _file(name: str) -> str:
    return (importlib.resources.files("app.account") / "static" / name).read_text("utf-8")
