"""The second leg of a login: count the guess, check the factor, use it up, and start the session."""

from functools import partial

from pydantic import SecretStr

from app.audit.service import Actor
from app.auth import service as auth
from app.auth.errors import InvalidGrantError
from app.auth.schemas import TokenPair
from app.auth.sessions import service as sessions
from app.auth.sessions.service import LockedUser
from app.auth.toolkit import Toolkit
from app.core.db.database import WriteSession
from app.factors import proofs
from app.factors.login import challenges, crud, failures, limits
from app.factors.login.crud import Guessed
from app.factors.proofs import Proof
from app.factors.schemas import SecondLeg


async def complete(kit: Toolkit, actor: Actor, payload: SecondLeg) -> TokenPair:
    """Exchange an `mfa_token` and a second factor for a pair of tokens.

    The guess is counted in a transaction of its own, before the check. The second transaction uses up the factor and the token, and
    starts the session: after a crash, either all of it has happened or nothing.
    """
    guessed = await _count(kit, actor, payload.mfa_token.get_secret_value())
    code, recovery_code = _plain(payload.code), _plain(payload.recovery_code)
    proof = proofs.check(kit.keys, guessed.user_id, guessed.sealed, code=code, recovery_code=recovery_code)
    try:
        return await kit.database.unit(partial(_start, kit, actor, guessed, proof))
    except InvalidGrantError:
        await failures.record(kit, actor, guessed.user_id, "used" if proof else "wrong")
        raise


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


async def _count(kit: Toolkit, actor: Actor, token: str) -> Guessed:
    async def count(session: WriteSession) -> Guessed:
        guessed = await challenges.count_guess(session, kit.keys, token)
        if guessed is None:
            raise InvalidGrantError
        await kit.limiter.hit_within(session, *limits.guess(actor, guessed.user_id))
        return guessed

    try:
        return await kit.database.unit(count)
    except InvalidGrantError:
        await kit.limiter.hit(*limits.unknown_login(actor))
        raise


async def _start(kit: Toolkit, actor: Actor, guessed: Guessed, proof: Proof | None, session: WriteSession) -> TokenPair:
    row = proof and await crud.redeem(session, guessed, proof.use, sessions.LOCKED_COLUMNS)
    if proof is None or row is None:
        raise InvalidGrantError
    await proofs.note_use(session, actor, guessed.user_id, proof)
    return await auth.complete_login(
        session,
        kit,
        actor,
        LockedUser(*row),
        guessed.scope or None,
        amr=(proof.method,),
        is_over_limit=guessed.is_over_limit,
        counted=limits.guess(actor, guessed.user_id),
    )
