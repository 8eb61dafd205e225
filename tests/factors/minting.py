"""The ways to get tokens with a second factor."""

from collections.abc import Mapping
from typing import Any

from tests.auth.login_sessions import start
from tests.auth.minting import Gives, Refuses, Site, Way
from tests.conftest import LoggedIn
from tests.factors.phone import CONFIRM, REAUTHENTICATE, SECOND_LEG, Phone, begin, first_leg

_CONFIRM = "UPDATE totp_secrets SET confirmed_at = now() WHERE user_id = $1"
_NOTHING = "SELECT $1::uuid"


async def _enrolled(site: Site, account: LoggedIn) -> tuple[Phone, dict[str, str]]:
    """Give the account a second factor, and return it with the header of a session that has not used it."""
    headers = (await start(site.client, account.email)).headers
    phone = await begin(site.client, headers)
    await site.execute(_CONFIRM, account)
    return phone, headers


async def _complete_login(site: Site, account: LoggedIn) -> Mapping[str, Any]:
    phone, _ = await _enrolled(site, account)
    mfa_token = await first_leg(site.client, account.email)
    return {"json": {"mfa_token": mfa_token, "code": phone.code()}}


async def _give_code(site: Site, account: LoggedIn) -> Mapping[str, Any]:
    phone, headers = await _enrolled(site, account)
    return {"json": {"code": phone.code()}, "headers": headers}


async def _confirm_setup(site: Site, account: LoggedIn) -> Mapping[str, Any]:
    headers = (await start(site.client, account.email)).headers
    phone = await begin(site.client, headers)
    return {"json": {"code": phone.code()}, "headers": headers}


WAYS = {
    "complete a login": Way(
        f"POST {SECOND_LEG}",
        _complete_login,
        {
            "none": Gives("aal2", starts_session=True),
            "disabled": Refuses(400, "invalid_grant"),
            # The first leg refuses unverified accounts. Nothing makes an address unverified between the legs.
            "unverified": Gives("aal2", starts_session=True),
            "factor": Gives("aal2", starts_session=True),
            "role": Gives("aal2", starts_session=True),
        },
        add_factor=_NOTHING,
        is_factor_real=True,
    ),
    "give a code again": Way(
        f"POST {REAUTHENTICATE}",
        _give_code,
        {
            "none": Gives("aal2"),
            "disabled": Refuses(401, "invalid_token"),
            "unverified": Gives("aal2"),
            "factor": Gives("aal2"),
            "role": Gives("aal2"),
        },
        add_factor=_NOTHING,
        is_factor_real=True,
    ),
    "confirm an app": Way(
        f"POST {CONFIRM}",
        _confirm_setup,
        {
            "none": Gives("aal2"),
            "disabled": Refuses(401, "invalid_token"),
            "unverified": Gives("aal2"),
            "factor": Refuses(404, "totp_not_pending"),
            "role": Gives("aal2"),
        },
        add_factor=_CONFIRM,
        is_factor_real=True,
    ),
}
CALLERS = {
    "app.factors.login.service._start": {"app.auth.service.complete_login"},
    "app.factors.service._raise_session": {"app.auth.sessions.service.renew"},
}
