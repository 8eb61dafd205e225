"""Checks codes of authenticator apps and recovery codes. The caller uses a right one up, in its own transaction."""

import time
from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy import Update

from app.audit import service as audit
from app.audit.service import Actor
from app.core.db.database import WriteSession
from app.core.security.keys import KeyRing
from app.factors import crud, jobs, recovery_codes, sealed, totp
from app.jobs import queue


class Proof(NamedTuple):
    """A factor that is right if `use` finds it unused. `method` is its name in `amr` (RFC 8176)."""

    method: Literal["otp", "rc"]
    use: Update


def check(
    keys: KeyRing, user_id: UUID, stored: bytes | None, *, code: str | None, recovery_code: str | None
) -> Proof | None:
    """Check the one that is given; None if it is wrong. `stored` is the sealed secret of the account's app, if it has one."""
    if code is not None:
        step = matching_step(keys, user_id, stored, code) if stored else None
        return None if step is None else Proof("otp", crud.accepting(step))
    digest = recovery_codes.digest(recovery_code or "")
    return None if digest is None else Proof("rc", crud.using(digest))


def matching_step(keys: KeyRing, user_id: UUID, stored: bytes, code: str) -> int | None:
    """Return the time step that a code belongs to; None for a wrong code."""
    return totp.matching_step(sealed.unseal(keys, user_id, stored), code, time.time())


async def note_use(session: WriteSession, actor: Actor, user_id: UUID, proof: Proof) -> None:
    """Tell the owner about the use of a recovery code: it may have been found by another person."""
    if proof.method == "rc":
        left = await crud.count_recovery_codes(session, user_id)
        await audit.record(session, actor, "auth.recovery_code_used", subject_id=user_id, left=left)
        await queue.enqueue(session, jobs.mail_recovery_code_used, user_id, left)
