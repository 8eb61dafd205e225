"""Endpoints `/users`: any account for administrators, and their own account for owners."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Query, Response

from app.auth.dependencies import (
    AuthRequest,
    ConfirmedPrincipal,
    CurrentPrincipal,
    CurrentUser,
    UsersReader,
    UsersWriter,
)
from app.auth.errors import StaleLoginError
from app.core.db.keyset import InvalidCursorError
from app.core.errors import PreconditionFailedError
from app.core.http import routing
from app.core.http.dependencies import ReadsDep, SessionDep
from app.core.http.etags import IfMatch, IfNoneMatch, acceptable_versions, etag, is_current, not_modified
from app.core.http.pagination import PagerDep
from app.core.http.problems import problem_responses
from app.core.schemas.pages import Page
from app.users import service
from app.users.dependencies import UserId
from app.users.errors import EmailTakenError, LastAdminError, UserNotFoundError
from app.users.models import User
from app.users.roles import Role
from app.users.schemas import MeUpdate, UserCreate, UserQuery, UserRead, UserUpdate
from app.users.service import Account

router = routing.router(prefix="/users", tags=["users"])
ROUTERS = (router,)


@router.get("/me", response_model=UserRead)
async def read_me(user: CurrentUser, response: Response, if_none_match: IfNoneMatch = None) -> Account | Response:
    """Read the account of the access token."""
    return _response(user, response, if_none_match)


@router.patch("/me", response_model=UserRead, responses=problem_responses(UserNotFoundError, PreconditionFailedError))
async def update_me(
    principal: CurrentPrincipal, session: SessionDep, response: Response, payload: MeUpdate, if_match: IfMatch = None
) -> User:
    """Change your own account."""
    versions = acceptable_versions(if_match)
    user = await service.update_me(session, principal.actor, principal.user_id, payload, versions=versions)
    response.headers["ETag"] = etag(user.version)
    return user


@router.delete(
    "/me",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problem_responses(StaleLoginError, UserNotFoundError, LastAdminError),
)
async def delete_me(principal: ConfirmedPrincipal, session: SessionDep) -> None:
    """Delete your own account permanently.

    This requires a login within the last five minutes. The audit log keeps its events about the account.
    """
    principal.require_recent_login()
    await service.delete(session, principal.actor, principal.user_id, confirm=principal.confirm)


@router.get("", response_model=Page[UserRead], responses=problem_responses(InvalidCursorError))
async def list_users(
    _reader: UsersReader, reads: ReadsDep, pager: PagerDep, query: Annotated[UserQuery, Query()]
) -> dict[str, Any]:
    """List accounts."""
    order = service.order_of(query)
    return pager.page(query, *await service.list_page(reads, query, pager.position(query, order)))


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    response_model=UserRead,
    responses=problem_responses(EmailTakenError, StaleLoginError),
)
async def create_user(
    request: AuthRequest, writer: UsersWriter, session: SessionDep, response: Response, payload: UserCreate
) -> User:
    """Create an account.

    The owner receives a mail with a link to set the password, so no one else ever knows it. Creating an administrator requires a
    login within the last five minutes.
    """
    if payload.role is not Role.USER:
        writer.require_recent_login()
    await writer.confirm(session)
    user = await service.create(session, writer.actor, request.state["keys"], payload)
    response.headers["Location"] = f"{request.scope['path']}/{user.id}"
    response.headers["ETag"] = etag(user.version)
    return user


@router.get("/{user_id}", response_model=UserRead, responses=problem_responses(UserNotFoundError))
async def read_user(
    _reader: UsersReader,
    reads: ReadsDep,
    response: Response,
    user_id: UserId,
    if_none_match: IfNoneMatch = None,
) -> Account | Response:
    """Read an account."""
    return _response(await service.get_account(reads, user_id), response, if_none_match)


@router.patch(
    "/{user_id}",
    response_model=UserRead,
    responses=problem_responses(UserNotFoundError, LastAdminError, PreconditionFailedError, StaleLoginError),
)
async def update_user(
    writer: UsersWriter,
    session: SessionDep,
    response: Response,
    user_id: UserId,
    payload: UserUpdate,
    if_match: IfMatch = None,
) -> User:
    """Change an account.

    A change of the role requires a login within the last five minutes. It takes effect on the next request of the account.
    """
    if payload.role is not None:
        writer.require_recent_login()
    versions = acceptable_versions(if_match)
    user = await service.update(session, writer.actor, user_id, payload, versions=versions, confirm=writer.confirm)
    response.headers["ETag"] = etag(user.version)
    return user


@router.delete(
    "/{user_id}",
    status_code=HTTPStatus.NO_CONTENT,
    responses=problem_responses(UserNotFoundError, LastAdminError, PreconditionFailedError),
)
async def delete_user(writer: UsersWriter, session: SessionDep, user_id: UserId, if_match: IfMatch = None) -> None:
    """Delete an account permanently.

    The audit log keeps its events about the account.
    """
    versions = acceptable_versions(if_match)
    await service.delete(session, writer.actor, user_id, versions=versions, confirm=writer.confirm)


def _response(user: Account, response: Response, if_none_match: str | None) -> Account | Response:
    if is_current(if_none_match, user.version):
        return not_modified(user.version)
    response.headers["ETag"] = etag(user.version)
    return user
