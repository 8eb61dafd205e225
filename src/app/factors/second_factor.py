"""What a login asks of this feature; see `app.auth.second_factor`."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ColumnElement

from app.audit import service as audit
from app.audit.service import Actor
from app.auth.errors import WrongCodeError
from app.auth.second_factor import MfaRequired
from app.auth.settings import AuthSettings
from app.auth.toolkit import Toolkit
from app.core.db.database import WriteSession
from app.core.security.rate_limits import Counted
from app.factors import crud, proofs
from app.factors.login import challenges, failures, limits

METHODS = ("totp", "recovery_code")


class Factors:
    """Authenticator apps and recovery codes."""

    is_enrolled: ColumnElement[bool] = crud.IS_ENROLLED

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
        """Record a challenge and its audit event, in one statement, and return what the response says."""
        lifetime = kit.settings.of(AuthSettings).mfa_token_ttl
        token = await challenges.create(
            session,
            kit.keys,
            user_id,
            authz_version=authz_version,
            scope=scope,
            is_over_limit=is_over_limit,
            lifetime=lifetime,
            event=audit.record_cte(actor, "auth.second_factor_asked", subject_id=user_id),
        )
        return MfaRequired(token, int(lifetime.total_seconds()), METHODS)

    def limits(self, actor: Actor, user_id: UUID, /) -> tuple[Counted, ...]:
        """Return the limits on guessing codes of an account."""
        return limits.guess(actor, user_id)

    def counters(self, user_id: UUID, /) -> tuple[Counted, ...]:
        """Return the counters of wrong codes that belong to the account alone."""
        return limits.of_account(user_id)

    async def check(
        self,
        session: WriteSession,
        kit: Toolkit,
        actor: Actor,
        user_id: UUID,
        /,
        *,
        code: str | None,
        recovery_code: str | None,
    ) -> Sequence[str]:
        """Use up the code or the recovery code, and return its method. Raises `WrongCodeError`."""
        stored = await crud.get_sealed(session, user_id) if code else None
        proof = proofs.check(kit.keys, user_id, stored, code=code, recovery_code=recovery_code)
        if proof is None:
            raise WrongCodeError
        if not await crud.use(session, user_id, proof.use):
            raise WrongCodeError("used")
        await proofs.note_use(session, actor, user_id, proof)
        return (proof.method,)

    async def record_failure(self, kit: Toolkit, actor: Actor, user_id: UUID, reason: str, /) -> None:
        """Record a wrong code, and tell the owner after five in a day, as at the second leg of a login."""
        await failures.record(kit, actor, user_id, reason)


SECOND_FACTOR = Factors()
