"""Endpoints `/users`: any account for administrators, and their own account for owners."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Query, Response

from app.auth.dependencies import ConfirmedPrincipal, CurrentPrincipal, CurrentUser, UsersReader, UsersWriter
from app.auth.errors import StaleLoginError
from app.core.http import routing
from app.core.http.dependencies import KeyRingDep, ReadsDep, SessionDep, SettingsDep
from app.core.http.etags import CreatedDep, IfMatch, IfNoneMatch, IfNoneMatchHeader, ReadCondition
from app.core.http.pagination import Page, PagerDep
from app.core.http.problems import problem_responses
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
async def read_me(user: CurrentUser, response: Response, if_none_match: IfNoneMatchHeader = None) -> Account:
    """Read the account of the access token."""
    # The same as with `IfNoneMatch`, but without a dependency, which costs 23 µs: clients call this operation most often.
    return ReadCondition(if_none_match, response).tag(user)


@router.patch("/me", response_model=UserRead, responses=problem_responses(UserNotFoundError))
async def update_me(principal: CurrentPrincipal, session: SessionDep, if_match: IfMatch, payload: MeUpdate) -> User:
    """Change your own account."""
    return if_match.tag(
        await service.update_me(session, principal.actor, principal.user_id, payload, versions=if_match.versions)
    )


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


@router.get("", response_model=Page[UserRead])
async def list_users(
    _reader: UsersReader, reads: ReadsDep, pager: PagerDep, query: Annotated[UserQuery, Query()]
) -> dict[str, Any]:
    """List accounts."""
    return await pager.list(query, service.ORDERS[query.sort], lambda page: service.list_page(reads, query, page))


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    response_model=UserRead,
    responses=problem_responses(EmailTakenError, StaleLoginError),
)
async def create_user(
    writer: UsersWriter,
    session: SessionDep,
    settings: SettingsDep,
    keys: KeyRingDep,
    created: CreatedDep,
    payload: UserCreate,
) -> User:
    """Create an account.

    The owner receives a mail with a link to set the password, so no one else ever knows it. Creating an administrator requires a
    login within the last five minutes.
    """
    service.refuse_special_use_domain(settings, payload.email)
    if payload.role is not Role.USER:
        writer.require_recent_login()
    await writer.confirm(session)
    return created.tag(await service.create(session, writer.actor, keys, payload))


@router.get("/{user_id}", response_model=UserRead, responses=problem_responses(UserNotFoundError))
async def read_user(_reader: UsersReader, reads: ReadsDep, if_none_match: IfNoneMatch, user_id: UserId) -> Account:
    """Read an account."""
    return if_none_match.tag(await service.get_account(reads, user_id))


@router.patch(
    "/{user_id}",
    response_model=UserRead,
    responses=problem_responses(UserNotFoundError, LastAdminError, StaleLoginError),
)
async def update_user(
    writer: UsersWriter, session: SessionDep, if_match: IfMatch, user_id: UserId, payload: UserUpdate
) -> User:
    """Change an account.

    A change of the role requires a login within the last five minutes. It takes effect on the next request of the account.
    """
    if payload.role is not None:
        writer.require_recent_login()
    return if_match.tag(
        await service.update(
            session, writer.actor, user_id, payload, versions=if_match.versions, confirm=writer.confirm
        )
    )


@router.delete(
    "/{user_id}", status_code=HTTPStatus.NO_CONTENT, responses=problem_responses(UserNotFoundError, LastAdminError)
)
async def delete_user(writer: UsersWriter, session: SessionDep, if_match: IfMatch, user_id: UserId) -> None:
    """Delete an account permanently.

    The audit log keeps its events about the account.
    """
    await service.delete(session, writer.actor, user_id, versions=if_match.versions, confirm=writer.confirm)
