"""Endpoints for passwords and export, below `/auth` and `/users`."""

from http import HTTPStatus
from typing import Any

from app.account import pages, service
from app.account.errors import InvalidLinkError
from app.account.schemas import (
    Accepted,
    EmailRequest,
    NewPassword,
    PasswordChange,
    export_schema,
)
from app.auth.dependencies import ConfirmedPrincipal, ConfirmedUser, CurrentUser, ToolkitDep, UsersWriter, Visitor
from app.auth.errors import WrongPasswordError
from app.core.errors import GoneMeanwhileError, RateLimitedError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import ReadSessionDep, SessionDep
from app.core.http.problems import problem_responses
from app.core.security.hashing import HashingBusyError
from app.users.dependencies import UserId
from app.users.errors import UserNotFoundError

router = routing.router(prefix="/auth", tags=["auth"])
me = routing.router(prefix="/users/me", tags=["users"])
users = routing.router(prefix="/users", tags=["users"])

ROUTERS = (router, me, users)
ROOT_ROUTERS = (pages.router,)


@router.post(
    "/password/forgot",
    status_code=HTTPStatus.ACCEPTED,
    openapi_extra=public,
    responses=problem_responses(RateLimitedError),
)
async def forgot_password(
    session: SessionDep, toolkit: ToolkitDep, visitor: Visitor, payload: EmailRequest
) -> Accepted:
    """Mail a link to set a new password, if the account exists."""
    await service.forgot_password(session, toolkit, visitor, payload.email)
    return Accepted()


@router.post(
    "/password/reset",
    status_code=HTTPStatus.NO_CONTENT,
    openapi_extra=public,
    responses=problem_responses(InvalidLinkError, RateLimitedError, HashingBusyError),
)
async def reset_password(toolkit: ToolkitDep, visitor: Visitor, payload: NewPassword) -> None:
    """Set a password with the secret of a mailed link. This ends every login session of the account."""
    await service.reset_password(toolkit, visitor, payload)


@me.get("/export", response_model=export_schema())
async def export_me(user: CurrentUser, session: ReadSessionDep) -> dict[str, Any]:
    """Download what is stored about your account, without secrets.

    Events that another account caused do not show that account or its network.
    """
    return await service.export(session, user)


@me.put(
    "/password",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problem_responses(WrongPasswordError, RateLimitedError, HashingBusyError),
)
async def change_my_password(
    toolkit: ToolkitDep, principal: ConfirmedPrincipal, user: ConfirmedUser, payload: PasswordChange
) -> None:
    """Change your password. The other login sessions end; this one continues with its refresh token."""
    await service.change_password(toolkit, principal.actor, user, payload, confirm=principal.confirm)


@users.post(
    "/{user_id}/password-reset",
    status_code=HTTPStatus.ACCEPTED,
    responses=problem_responses(GoneMeanwhileError, UserNotFoundError),
)
async def send_password_reset(
    toolkit: ToolkitDep, writer: UsersWriter, session: SessionDep, user_id: UserId
) -> Accepted:
    """Mail the owner of an account a link to set a new password. Only the owner sees the link."""
    await writer.confirm(session, user_id)
    await service.send_password_reset(session, toolkit, writer.actor, user_id)
    return Accepted()
