"""Endpoints for a change of address, and the page that the mailed link leads to."""

from http import HTTPStatus

from fastapi import Response

from app.account import pages
from app.account.errors import InvalidLinkError
from app.account.schemas import Accepted, LinkProof
from app.auth.dependencies import ConfirmedPrincipal, ConfirmedUser, ToolkitDep, Visitor
from app.auth.errors import WrongPasswordError
from app.core.errors import GoneMeanwhileError, RateLimitedError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import SettingsDep
from app.core.http.problems import problem_responses
from app.core.security.hashing import HashingBusyError
from app.email_change import service
from app.email_change.schemas import EmailChange

router = routing.router(prefix="/auth/email", tags=["auth"])
me = routing.router(prefix="/users/me", tags=["users"])
page = routing.router(prefix="/account")

ROUTERS = (router, me)
ROOT_ROUTERS = (page,)

_FORM = pages.Form("Confirm your new address", "Confirm", "../api/v1/auth/email/confirm")


@router.post(
    "/confirm",
    status_code=HTTPStatus.NO_CONTENT,
    openapi_extra=public,
    responses=problem_responses(InvalidLinkError, RateLimitedError),
)
async def confirm_email(toolkit: ToolkitDep, visitor: Visitor, payload: LinkProof) -> None:
    """Complete a change of address with the secret that was mailed to the new address. The old address gets a notice."""
    await service.confirm_email(toolkit, visitor, payload.token.get_secret_value())


@me.post(
    "/email",
    status_code=HTTPStatus.ACCEPTED,
    responses=problem_responses(GoneMeanwhileError, WrongPasswordError, RateLimitedError, HashingBusyError),
)
async def change_my_email(
    toolkit: ToolkitDep, principal: ConfirmedPrincipal, user: ConfirmedUser, payload: EmailChange
) -> Accepted:
    """Request a change of your address. The new address gets a link to confirm it, the old one a notice."""
    await service.change_email(toolkit, principal.actor, user, payload, confirm=principal.confirm)
    return Accepted()


@page.get("/confirm-email", include_in_schema=False, openapi_extra=public)
async def read_confirmation_page(settings: SettingsDep) -> Response:
    """Show the page a mailed link leads to."""
    return pages.show(_FORM, settings)
