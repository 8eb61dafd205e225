"""Stands for the feature with second factors, above auth: the accounts named `ENROLLED` have one, whose code is always `CODE`."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement

from app.audit import service as audit
from app.audit.service import Actor
from app.auth.errors import WrongCodeError
from app.auth.second_factor import MfaRequired
from app.auth.toolkit import Toolkit
from app.core.db.database import WriteSession
from app.core.security.rate_limits import Counted, Limit
from app.users.models import User

ENROLLED = "Has A Factor"
CODE, RECOVERY_CODE = "123456", "ABCD-EFGH"
_GUESSES = Limit("guesses", 10, timedelta(minutes=15))


class CodeFactor:
    is_enrolled: ColumnElement[bool] = User.full_name == ENROLLED

    async def ask(
        self,
        session: WriteSession,
        kit: Toolkit,
        actor: Actor,
        user_id: UUID,
        /,
        *,
        authz_version: int,
        scope: str | None,
        is_over_limit: bool,
    ) -> MfaRequired:
        await audit.record(
            session,
            actor,
            "auth.second_factor_asked",
            subject_id=user_id,
            version=authz_version,
            scope=scope,
            over_limit=is_over_limit,
        )
        return MfaRequired("mt1.token", int(kit.settings.rate_limit.enabled) + 299, ("totp", "recovery_code"))

    def limits(self, _actor: Actor, user_id: UUID, /) -> tuple[Counted, ...]:
        return ((_GUESSES, str(user_id)),)

    def counters(self, user_id: UUID, /) -> tuple[Counted, ...]:
        return ((_GUESSES, str(user_id)),)

    async def check(
        self,
        _session: WriteSession,
        _kit: Toolkit,
        _actor: Actor,
        _user_id: UUID,
        /,
        *,
        code: str | None,
        recovery_code: str | None,
    ) -> Sequence[str]:
        if code == CODE:
            return ("otp",)
        if recovery_code == RECOVERY_CODE:
            return ("rc",)
        raise WrongCodeError

    async def record_failure(self, kit: Toolkit, actor: Actor, user_id: UUID, reason: str, /) -> None:
        async with kit.database.begin() as session:
            await audit.record(session, actor, "auth.second_factor_failed", subject_id=user_id, reason=reason)
