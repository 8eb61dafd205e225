"""An account with a second factor: its authenticator app and its recovery codes, and the requests of its owner."""

import time
from dataclasses import dataclass
from typing import Any

import pyotp
from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.core.db.database import WriteSession
from app.factors import totp
from tests.auth.login_sessions import Pair
from tests.auth.post import log_in
from tests.conftest import LoggedIn
from tests.factories import PASSWORD

MFA = "/api/v1/users/me/mfa"
TOTP = f"{MFA}/totp"
CONFIRM = f"{TOTP}/confirm"
CODES = f"{MFA}/recovery-codes"
SECOND_LEG = "/api/v1/auth/mfa"
REAUTHENTICATE = "/api/v1/auth/reauthenticate"
NOBODYS_CODE = "0000-0000-0000-0000-0000-0000"


@dataclass
class Phone:
    """An authenticator app with the secret of one account."""

    secret: str

    def code(self, *, steps: int = 0) -> str:
        """Return the code that the app shows now, or so many steps later."""
        return pyotp.TOTP(self.secret).at(int(time.time()) + steps * totp.PERIOD)

    def wrong(self) -> str:
        """Return a code that the app shows at no time near now."""
        near = {self.code(steps=steps) for steps in range(-3, 4)}
        return next(code for code in map("{:06}".format, range(10)) if code not in near)


@dataclass
class Enrolled:
    """The owner of an account with a second factor."""

    user_id: str
    email: str
    phone: Phone
    recovery_codes: list[str]
    # Of the login session in which the factor was set up.
    pair: Pair


async def begin(client: AsyncClient, headers: dict[str, str]) -> Phone:
    """Begin to set up an app. It is not confirmed yet."""
    response = await client.post(TOTP, headers=headers)
    assert response.status_code == 201, response.text
    return Phone(response.json()["secret"])


async def enrol(client: AsyncClient, user: LoggedIn) -> Enrolled:
    """Set up an app for an account. Its code of this moment is used up."""
    phone = await begin(client, user.headers)
    response = await client.post(CONFIRM, json={"code": phone.code()}, headers=user.headers)
    assert response.status_code == 200, response.text
    body = response.json()
    return Enrolled(user.user_id, user.email, phone, body["recovery_codes"], Pair(body))


async def first_leg(client: AsyncClient, email: str, password: str = PASSWORD, **headers: str) -> str:
    """Give the right password, and return the `mfa_token`."""
    response = await log_in(client, email, password, **headers)
    assert response.status_code == 403, response.text
    assert response.json()["code"] == "mfa_required"
    return str(response.json()["mfa_token"])


async def second_leg(client: AsyncClient, mfa_token: str, **proof: str) -> Response:
    """Send `code=` or `recovery_code=`."""
    return await client.post(SECOND_LEG, json={"mfa_token": mfa_token, **proof})


async def log_in_with_code(client: AsyncClient, owner: Enrolled, *, steps: int = 1) -> Pair:
    """Log in with both legs. By default with the next code, because the setup has used that of this moment up."""
    response = await second_leg(client, await first_leg(client, owner.email), code=owner.phone.code(steps=steps))
    assert response.status_code == 200, response.text
    return Pair(response.json())


async def forget_used_codes(session: WriteSession) -> None:
    """Let the codes of this moment be used again, as after some minutes."""
    await session.execute(text("UPDATE totp_secrets SET last_step = 0"))
    await session.commit()


async def sessions_of(session: WriteSession, user_id: str) -> list[Any]:
    """Read the login sessions of an account, oldest first."""
    statement = text("SELECT id, acr, amr, scope, revoke_reason FROM sessions WHERE user_id = :id ORDER BY id")
    return list((await session.execute(statement, {"id": user_id})).all())


async def live_sessions(session: WriteSession, user_id: str) -> list[Any]:
    return [one for one in await sessions_of(session, user_id) if one.revoke_reason is None]


async def factor_of(session: WriteSession, user_id: str) -> Any:
    """Read the row of an account's app; None without one."""
    statement = text("SELECT * FROM totp_secrets WHERE user_id = :id")
    return (await session.execute(statement, {"id": user_id})).one_or_none()


async def unused_codes(session: WriteSession, user_id: str) -> int:
    statement = text("SELECT count(*) FROM recovery_codes WHERE user_id = :id AND used_at IS NULL")
    return int(await session.scalar(statement, {"id": user_id}) or 0)


async def challenges_of(session: WriteSession, user_id: str) -> list[Any]:
    statement = text("SELECT * FROM login_challenges WHERE user_id = :id ORDER BY id")
    return list((await session.execute(statement, {"id": user_id})).all())
