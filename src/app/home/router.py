"""The page at `/`. In the environment `local` it leads on to the documentation and to the mails that were sent.

Mails contain links that give access to accounts. So their pages exist only in `local`, where mails are written to files.
"""

import asyncio
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request, Response

from app import features
from app.core import product
from app.core.config.groups import is_loopback
from app.core.errors import NotFoundError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import CoreRequest, SettingsDep
from app.health import service as health
from app.health.errors import NotReadyError
from app.home import pages
from app.home.errors import ForeignHostError, MailNotFoundError
from app.mail import outbox
from app.mail.outbox import StoredMail
from app.mail.settings import MailSettings

router = routing.router()
ROOT_ROUTERS = (router,)

_SHOWN = 100


@router.get("/", include_in_schema=False, openapi_extra=public)
async def read_home(request: CoreRequest, settings: SettingsDep) -> Response:
    """Show what runs here."""
    if settings.environment != "local":
        return Response(f"{product.NAME}\n", media_type="text/plain")
    return pages.show(
        "home",
        state=await _state(request),
        has_docs=settings.serves_docs,
        has_mails=settings.of(MailSettings).directory is not None,
        links=[link for _, part in features.parts("home") for link in part.LINKS],
    )


async def _state(request: CoreRequest) -> str:
    state = request.state
    try:
        await health.check_readiness(state["database"], schema=state["schema"], checks=state["readiness"])
    except NotReadyError as error:
        return error.detail
    return "Ready."


async def get_directory(request: Request, settings: SettingsDep) -> Path:
    """Return the directory of the sent mails."""
    directory = settings.of(MailSettings).directory
    if settings.environment != "local" or directory is None:
        raise NotFoundError
    # A page of a foreign name that resolves to this machine (DNS rebinding) sends its own name.
    host = request.url.hostname or ""
    if not is_loopback(host) and host != urlsplit(settings.public_url).hostname:
        raise ForeignHostError
    # These pages send no such header themselves. A page of another origin does, and CORS may let it read the response.
    if "origin" in request.headers:
        raise ForeignHostError
    return directory


type Directory = Annotated[Path, Depends(get_directory)]


async def get_mail(directory: Directory, name: str) -> StoredMail:
    """Return the mail that the path names."""
    if mail := await asyncio.to_thread(outbox.find, directory, name):
        return mail
    raise MailNotFoundError


type Mail = Annotated[StoredMail, Depends(get_mail)]


@router.get("/local/mails", include_in_schema=False, openapi_extra=public)
async def list_mails(directory: Directory) -> Response:
    """List the sent mails, the newest first."""
    return pages.show("mails", mails=await asyncio.to_thread(outbox.newest, directory, _SHOWN), shown=_SHOWN)


@router.get("/local/mails/{name}", include_in_schema=False, openapi_extra=public)
async def read_mail(mail: Mail) -> Response:
    """Show a mail as text and as HTML."""
    return pages.show("mail", mail=mail)


@router.get("/local/mails/{name}/html", include_in_schema=False, openapi_extra=public)
async def read_mail_html(mail: Mail) -> Response:
    """Return the HTML of a mail, for the frame of its page."""
    return pages.framed(mail.html)
