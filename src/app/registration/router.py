"""Endpoints for registration and the verification of an address, and the page that the mailed link leads to."""

from http import HTTPStatus

from fastapi import Response

from app.account import pages
from app.account.errors import InvalidLinkError
from app.account.schemas import Accepted, EmailRequest, LinkProof
from app.auth.dependencies import ToolkitDep, Visitor
from app.core.errors import RateLimitedError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import SessionDep, SettingsDep
from app.core.http.problems import problem_responses
from app.core.security.hashing import HashingBusyError
from app.registration import service
from app.registration.errors import RegistrationClosedError
from app.registration.schemas import Registration

router = routing.router(prefix="/auth", tags=["auth"])
page = routing.router(prefix="/account")

ROUTERS = (router,)
ROOT_ROUTERS = (page,)

_FORM = pages.Form("Verify your address", "Verify", "../api/v1/auth/verify-email")


@router.post(
    "/register",
    status_code=HTTPStatus.ACCEPTED,
    openapi_extra=public,
    responses=problem_responses(RegistrationClosedError, RateLimitedError, HashingBusyError),
)
async def register(session: SessionDep, toolkit: ToolkitDep, visitor: Visitor, payload: Registration) -> Accepted:
    """Create an account.

    The response is the same whether or not the address has an account. The result is mailed to the address.
    """
    await service.register(session, toolkit, visitor, payload)
    return Accepted()


@router.post(
    "/verify-email",
    status_code=HTTPStatus.NO_CONTENT,
    openapi_extra=public,
    responses=problem_responses(InvalidLinkError, RateLimitedError),
)
async def verify_email(toolkit: ToolkitDep, visitor: Visitor, payload: LinkProof) -> None:
    """Verify an address with the secret that was mailed to it. The secret works once, for a day."""
    await service.verify_email(toolkit, visitor, payload.token.get_secret_value())


@router.post(
    "/verify-email/resend",
    status_code=HTTPStatus.ACCEPTED,
    openapi_extra=public,
    responses=problem_responses(RateLimitedError),
)
async def resend_verification(
    session: SessionDep, toolkit: ToolkitDep, visitor: Visitor, payload: EmailRequest
) -> Accepted:
    """Mail another verification link, if the address needs one."""
    await service.resend_verification(session, toolkit, visitor, payload.email)
    return Accepted()


@page.get("/verify-email", include_in_schema=False, openapi_extra=public)
async def read_verification_page(settings: SettingsDep) -> Response:
    """Show the page a mailed link leads to."""
    return pages.show(_FORM, settings)
