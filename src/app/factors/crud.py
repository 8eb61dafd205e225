"""One function per statement about second factors. Private to the services of `factors`."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Update, any_, delete, exists, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import InstrumentedAttribute

from app.core.db import crud
from app.core.db.database import ReadSession, WriteSession
from app.factors.models import LoginChallenge, RecoveryCode, TotpSecret
from app.users.models import User

# Time in which the owner must confirm a secret with its first code.
PENDING = timedelta(minutes=10)
IS_CONFIRMED = TotpSecret.confirmed_at.is_not(None)
# SQL condition about the row of `User`: the account has a second factor.
IS_ENROLLED: ColumnElement[bool] = exists().where(TotpSecret.user_id == User.id, IS_CONFIRMED)


class Status(NamedTuple):
    """The role and the second factors of an account, as its owner sees them."""

    role: str
    created_at: datetime | None
    last_used_at: datetime | None
    recovery_codes_left: int


async def get_status(session: ReadSession, user_id: UUID) -> Status | None:
    left = select(func.count()).where(RecoveryCode.user_id == User.id, RecoveryCode.used_at.is_(None))
    statement = (
        select(User.role, TotpSecret.created_at, TotpSecret.last_used_at, left.scalar_subquery())
        .outerjoin(TotpSecret, (TotpSecret.user_id == User.id) & IS_CONFIRMED)
        .where(User.id == user_id)
    )
    return crud.only(Status, await session.execute(statement))


async def start_enrolment(session: WriteSession, user_id: UUID, sealed: bytes) -> datetime | None:
    """Store a secret that the owner must confirm, instead of an earlier one. Returns its time; None if the account has a confirmed one."""
    statement = upsert(TotpSecret).values(user_id=user_id, sealed=sealed)
    statement = statement.on_conflict_do_update(
        index_elements=[TotpSecret.user_id],
        set_={"sealed": statement.excluded.sealed, "created_at": func.now()},
        where=TotpSecret.confirmed_at.is_(None),
    )
    return await session.scalar(statement.returning(TotpSecret.created_at))


async def lock_pending(session: WriteSession, user_id: UUID) -> bytes | None:
    """Lock and read the sealed secret that waits for its confirmation; None if there is none, or it has waited for too long.

    The purge takes no lock on the account. Without this lock it could delete the secret between the check and the confirmation.
    """
    is_pending = TotpSecret.confirmed_at.is_(None) & (TotpSecret.created_at > func.now() - PENDING)
    pending = select(TotpSecret.sealed).where(TotpSecret.user_id == user_id, is_pending)
    return await session.scalar(pending.with_for_update(key_share=True))


async def confirm(session: WriteSession, user_id: UUID, step: int) -> None:
    """Make the pending secret of an account its second factor. Its caller has locked both."""
    values = {"confirmed_at": func.now(), "last_step": step, "last_used_at": func.now()}
    await session.execute(update(TotpSecret).where(TotpSecret.user_id == user_id).values(values))


async def get_sealed(session: ReadSession, user_id: UUID) -> bytes | None:
    """Read the sealed secret of an account's second factor; None if it has none."""
    return await session.scalar(select(TotpSecret.sealed).where(TotpSecret.user_id == user_id, IS_CONFIRMED))


def accepting(step: int) -> Update:
    """Return the statement that uses the code of a time step up. It finds no row if a code of this step or a later one was accepted."""
    return (
        update(TotpSecret)
        .where(IS_CONFIRMED, TotpSecret.last_step < step)
        .values(last_step=step, last_used_at=func.now())
    )


def using(digest: bytes) -> Update:
    """Return the statement that uses a recovery code up. It finds no row if the code does not exist, or was used."""
    return (
        update(RecoveryCode)
        .where(RecoveryCode.digest == digest, RecoveryCode.used_at.is_(None))
        .values(used_at=func.now())
    )


def owner_of(statement: Update) -> InstrumentedAttribute[UUID]:
    owner: InstrumentedAttribute[UUID] = statement.entity_description["entity"].user_id
    return owner


async def use(session: WriteSession, user_id: UUID, statement: Update) -> bool:
    """Use a factor of an account up with one of the statements above. Of several concurrent calls, one returns True."""
    owner = owner_of(statement)
    statement = statement.where(owner == user_id).returning(owner).execution_options(synchronize_session=False)
    return await session.scalar(statement) is not None


async def count_recovery_codes(session: ReadSession, user_id: UUID) -> int:
    """Count the recovery codes that have not been used."""
    statement = select(func.count()).where(RecoveryCode.user_id == user_id, RecoveryCode.used_at.is_(None))
    return await session.scalar(statement) or 0


async def replace_recovery_codes(session: WriteSession, user_id: UUID, digests: Sequence[bytes]) -> None:
    earlier = delete(RecoveryCode).where(RecoveryCode.user_id == user_id).cte("earlier")
    values = [{"user_id": user_id, "digest": digest} for digest in digests]
    await session.execute(insert(RecoveryCode).values(values).add_cte(earlier))


async def remove_all(session: WriteSession, user_id: UUID) -> bool:
    """Remove the second factor of an account, its recovery codes, and its logins that wait. False if it had no second factor."""
    waiting = delete(LoginChallenge).where(LoginChallenge.user_id == user_id).cte("waiting")
    codes = delete(RecoveryCode).where(RecoveryCode.user_id == user_id).cte("codes")
    statement = delete(TotpSecret).where(TotpSecret.user_id == user_id).returning(IS_CONFIRMED)
    return bool(await session.scalar(statement.add_cte(waiting, codes)))


async def purge_pending(session: WriteSession, _after: datetime | None, *, batch: int) -> datetime | None:
    """Delete the oldest `batch` secrets that were not confirmed in time. A step of `jobs.housekeeping`."""
    portion = (
        select(TotpSecret.user_id)
        .where(TotpSecret.confirmed_at.is_(None), TotpSecret.created_at < func.now() - PENDING)
        .order_by(TotpSecret.created_at)
        .limit(batch)
        .with_for_update(skip_locked=True)
    )
    statement = (
        delete(TotpSecret)
        .where(TotpSecret.user_id == any_(func.array(portion.scalar_subquery())))
        .returning(TotpSecret.created_at)
        .execution_options(synchronize_session=False)
    )
    created = (await session.scalars(statement)).all()
    return max(created) if len(created) == batch else None
