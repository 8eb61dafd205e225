"""The second leg of a login, and the second factors of accounts below `/users`."""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, override

from fastapi import Request, Response

from app.auth.dependencies import (
    ConfirmedPrincipal,
    ConfirmedUser,
    CurrentPrincipal,
    ToolkitDep,
    UsersWriter,
    Visitor,
    require,
)
from app.auth.errors import InvalidGrantError, InvalidScopeError, StaleLoginError, WrongCodeError
from app.auth.schemas import TokenPair
from app.auth.sessions.dependencies import TokenTransportDep
from app.core.errors import GoneMeanwhileError, RateLimitedError
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import ReadSessionDep, SessionDep, SettingsDep
from app.core.http.problems import problem_responses
from app.core.security.sealing import NoSealKeyError
from app.factors import service
from app.factors.errors import MfaRequiredByRoleError, TotpEnabledError, TotpNotFoundError, TotpNotPendingError
from app.factors.login import service as login
from app.factors.schemas import MfaRead, RecoveryCodes, SecondLeg, TotpCode, TotpConfirmed, TotpPending
from app.users.dependencies import UserId
from app.users.errors import UserNotFoundError

# Seconds since the second factor was given, for operations that weaken an account.
_RECENT = 300


class SecondLegRoute(routing.Route):
    """An operation with the errors that OAuth client libraries expect (RFC 6749, 5.2)."""

    has_oauth_errors = True

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def without_cache(request: Request) -> Response:
            response = await handle(request)
            # RFC 6749, 5.1 requires this and Cache-Control, which every response has.
            response.headers["Pragma"] = "no-cache"
            return response

        return without_cache


second_leg = routing.router(prefix="/auth", tags=["auth"], route_class=SecondLegRoute)
me = routing.router(prefix="/users/me/mfa", tags=["users"])
users = routing.router(prefix="/users", tags=["users"])

ROUTERS = (second_leg, me, users)


@second_leg.post(
    "/mfa",
    openapi_extra=public,
    responses=problem_responses(InvalidGrantError, InvalidScopeError, RateLimitedError),
)
async def complete_login(
    toolkit: ToolkitDep, response: Response, visitor: Visitor, transport: TokenTransportDep, payload: SecondLeg
) -> TokenPair:
    """Complete a login with a second factor.

    `POST /auth/token` has answered 403 `mfa_required` with an `mfa_token`. A login has five guesses.
    """
    return transport.sent(response, await login.complete(toolkit, visitor, payload))


@me.get("")
async def read_my_mfa(principal: CurrentPrincipal, session: ReadSessionDep, settings: SettingsDep) -> MfaRead:
    """Read which second factors your account has."""
    return await service.get_status(session, settings, principal.user_id)


@me.post(
    "/totp",
    status_code=HTTPStatus.CREATED,
    responses=problem_responses(StaleLoginError, TotpEnabledError, GoneMeanwhileError, NoSealKeyError),
)
async def create_my_totp(
    toolkit: ToolkitDep, session: SessionDep, principal: ConfirmedPrincipal, user: ConfirmedUser
) -> TotpPending:
    """Begin to set up an authenticator app. It needs a confirmation with a code within ten minutes.

    This requires a login within the last five minutes. It replaces a secret that was not confirmed.
    """
    principal.require_recent_login()
    return await service.start_totp(session, toolkit, user, confirm=principal.confirm)


@me.post("/totp/confirm", responses=problem_responses(WrongCodeError, TotpNotPendingError, RateLimitedError))
async def confirm_my_totp(
    toolkit: ToolkitDep,
    response: Response,
    transport: TokenTransportDep,
    principal: ConfirmedPrincipal,
    payload: TotpCode,
) -> TotpConfirmed:
    """Complete the setup of an authenticator app with its first code.

    From now on, a login needs a code of the app, or one of the recovery codes in the response. Your other login sessions end.
    """
    code = payload.code.get_secret_value()
    confirmed = await service.confirm_totp(toolkit, principal.actor, principal.user_id, code, confirm=principal.confirm)
    return transport.sent(response, confirmed)


@me.delete(
    "/totp",
    status_code=HTTPStatus.NO_CONTENT,
    dependencies=[require(acr="aal2", max_age=_RECENT)],
    responses=problem_responses(MfaRequiredByRoleError, TotpNotFoundError, UserNotFoundError),
)
async def delete_my_totp(toolkit: ToolkitDep, session: SessionDep, principal: ConfirmedPrincipal) -> None:
    """Remove your authenticator app and your recovery codes.

    This requires a code within the last five minutes. It ends the login sessions that have given a second factor, this one too.
    """
    await service.remove_totp(session, toolkit, principal.actor, principal.user_id, confirm=principal.confirm)


@me.post(
    "/recovery-codes",
    status_code=HTTPStatus.CREATED,
    dependencies=[require(acr="aal2", max_age=_RECENT)],
    responses=problem_responses(TotpNotFoundError),
)
async def create_my_recovery_codes(session: SessionDep, principal: ConfirmedPrincipal) -> RecoveryCodes:
    """Get new recovery codes. The old ones stop working.

    This requires a code within the last five minutes.
    """
    codes = await service.create_recovery_codes(session, principal.actor, principal.user_id, confirm=principal.confirm)
    return RecoveryCodes(recovery_codes=codes)


@users.delete(
    "/{user_id}/mfa",
    status_code=HTTPStatus.NO_CONTENT,
    dependencies=[require(acr="aal2", max_age=_RECENT)],
    responses=problem_responses(UserNotFoundError, MfaRequiredByRoleError),
)
async def delete_user_mfa(toolkit: ToolkitDep, session: SessionDep, writer: UsersWriter, user_id: UserId) -> None:
    """Remove all second factors of an account whose owner has lost them.

    This requires a code of yours within the last five minutes. It ends the login sessions of the account. Its owner gets a mail.
    """
    await service.reset_by_admin(session, toolkit, writer.actor, user_id, confirm=writer.confirm)
