"""What a login asks of the feature that has second factors.

Such a feature stands above auth in `FEATURES`, and auth imports nothing of it. Its part `second_factor.py` has the name
`SECOND_FACTOR`. Without such a feature the one of this module holds, and no account has a second factor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol
from uuid import UUID

from sqlalchemy import ColumnElement, false

from app import features
from app.audit import service as audit
from app.audit.service import Actor
from app.auth.errors import WrongCodeError
from app.auth.sessions import limits
from app.auth.settings import AuthSettings
from app.core.config import Settings
from app.core.db.database import WriteSession
from app.core.errors import ConfigurationError
from app.core.security.rate_limits import Counted


@dataclass(frozen=True, slots=True)
class MfaRequired:
    """What the client of a login gets instead of tokens, if its password is right and the account has a second factor."""

    mfa_token: str
    expires_in: int
    methods: Sequence[str]
    """What the second leg accepts: `totp`, `recovery_code`, later `passkey`."""


class SecondFactor[Kit](Protocol):
    """The second factors of accounts. `Kit` is the `Toolkit`, which holds this object."""

    @property
    def is_enrolled(self) -> ColumnElement[bool]:
        """An SQL condition about `User.id`: the account has a confirmed factor.

        It is always the same object. It becomes part of the statements of a login, so it costs no statement. A transaction that
        changes it has locked the account before.
        """

    async def ask(
        self,
        session: WriteSession,
        kit: Kit,
        actor: Actor,
        user_id: UUID,
        /,
        *,
        authz_version: int,
        scope: str | None,
        is_over_limit: bool,
    ) -> MfaRequired:
        """Record a challenge and its audit event, in one statement, and return what the response says.

        The password of the account in this version has just been verified, and `scope` is what the client requests. The caller
        commits, and then raises. The second leg locks the account with `sessions.service.lock_unchanged`, and ends in
        `auth.service.complete_login`, to which it passes `scope` and `is_over_limit`.
        """

    def limits(self, actor: Actor, user_id: UUID, /) -> tuple[Counted, ...]:
        """Return the limits on guessing codes of an account. The caller of `check` counts them before its transaction begins."""

    def counters(self, user_id: UUID, /) -> tuple[Counted, ...]:
        """Return the counters of wrong codes that belong to the account alone. A new password sets them to zero, within limits."""

    async def check(
        self,
        session: WriteSession,
        kit: Kit,
        actor: Actor,
        user_id: UUID,
        /,
        *,
        code: str | None,
        recovery_code: str | None,
    ) -> Sequence[str]:
        """Use up the code or the recovery code, of which one is given. Return its methods (`amr`): `otp`, or `rc`.

        Raises `WrongCodeError`, also for an account without a factor. The error rolls the transaction back. Its caller has locked
        the account and the login session before, and calls `record_failure` afterwards.
        """

    async def record_failure(self, kit: Kit, actor: Actor, user_id: UUID, reason: str, /) -> None:
        """Record a wrong code in a transaction of its own, and tell the owner of the account if there are many."""


class NoSecondFactor:
    """No account has a second factor."""

    is_enrolled: ColumnElement[bool] = false()

    async def ask(self, *_given: object, **_options: object) -> NoReturn:
        """No login asks for a second factor, because no account is enrolled."""
        raise RuntimeError("no account has a second factor")

    def limits(self, actor: Actor, user_id: UUID, /) -> tuple[Counted, ...]:
        """Return a limit although no code is right, because each attempt writes an audit event."""
        return limits.code(actor, user_id)

    def counters(self, _user_id: UUID, /) -> tuple[Counted, ...]:
        """No counter keeps an owner out."""
        return ()

    async def check(self, *_given: object, **_options: object) -> NoReturn:
        """Refuse every code."""
        raise WrongCodeError

    async def record_failure(self, kit: Any, actor: Actor, user_id: UUID, reason: str, /) -> None:
        """Record the event. There is no factor that somebody guesses, so the owner need not know."""
        # `kit` is a `Toolkit`, whose module imports this one.
        async with kit.database.begin() as session:
            await audit.record(session, actor, "auth.second_factor_failed", subject_id=user_id, reason=reason)


SECOND_FACTOR = NoSecondFactor()


def installed() -> SecondFactor[Any]:
    """Return the second factor of the feature above auth that has one, or that of this module."""
    (_, own), *others = features.parts("second_factor")
    if len(others) > 1:
        names = " and ".join(name for name, _ in others)
        raise ValueError(f"{names} both have a second_factor.py; keep one of them")
    found: SecondFactor[Any] = (others[0][1] if others else own).SECOND_FACTOR
    return found


def refuse_required_without_feature(settings: Settings) -> None:
    """Raise `ConfigurationError` if a role needs a second factor, and no account can have one."""
    if settings.of(AuthSettings).mfa_required_roles and installed() is SECOND_FACTOR:
        raise ConfigurationError(
            "APP_AUTH__MFA_REQUIRED_ROLES: no installed feature has second factors, so these roles could do nothing; remove it, or "
            "add such a feature to FEATURES in src/app/features.py"
        )
