"""One function per statement about second factors. Private to the services of `factors`."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import CTE, ColumnElement, Row, Update, any_, delete, exists, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from app.core.db import crud
from app.core.db.database import ReadSession, WriteSession
from app.factors.models import LoginChallenge, RecoveryCode, TotpSecret
from app.users.models import User

_IS_CONFIRMED = TotpSecret.confirmed_at.is_not(None)
# SQL condition about the row of `User`: the account has a second factor.
IS_ENROLLED: ColumnElement[bool] = exists().where(TotpSecret.user_id == User.id, _IS_CONFIRMED)


class Status(NamedTuple):
    """The role and the second factors of an account, as its owner sees them."""

    role: str
    created_at: datetime | None
    last_used_at: datetime | None
    recovery_codes_left: int


class Guessed(NamedTuple):
    """A login that waits for the second factor, with the guess that has just been counted."""

    id: UUID
    user_id: UUID
    authz_version: int
    scope: str
    nonce: bytes
    pepper_id: int
    failures: int
    sealed: bytes | None


async def get_status(session: ReadSession, user_id: UUID) -> Status | None:
    left = select(func.count()).where(RecoveryCode.user_id == User.id, RecoveryCode.used_at.is_(None))
    statement = (
        select(User.role, TotpSecret.created_at, TotpSecret.last_used_at, left.scalar_subquery())
        .outerjoin(TotpSecret, (TotpSecret.user_id == User.id) & _IS_CONFIRMED)
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


async def get_pending(session: ReadSession, user_id: UUID, lifetime: timedelta) -> bytes | None:
    """Read the sealed secret that waits for its confirmation; None if there is none, or it has waited for too long."""
    return await session.scalar(select(TotpSecret.sealed).where(*_is_pending(user_id, lifetime)))


async def confirm(session: WriteSession, user_id: UUID, sealed: bytes, step: int, lifetime: timedelta) -> bool:
    """Make a pending secret the second factor of its account. False if it is no longer pending, or has been replaced."""
    statement = (
        update(TotpSecret)
        .where(*_is_pending(user_id, lifetime), TotpSecret.sealed == sealed)
        .values(confirmed_at=func.now(), last_step=step, last_used_at=func.now())
    )
    return await _has_changed(session, statement)


def _is_pending(user_id: UUID, lifetime: timedelta) -> tuple[ColumnElement[bool], ...]:
    return (
        TotpSecret.user_id == user_id,
        TotpSecret.confirmed_at.is_(None),
        TotpSecret.created_at > func.now() - lifetime,
    )


async def get_sealed(session: ReadSession, user_id: UUID) -> bytes | None:
    """Read the sealed secret of an account's second factor; None if it has none."""
    return await session.scalar(select(TotpSecret.sealed).where(TotpSecret.user_id == user_id, _IS_CONFIRMED))


async def accept_step(session: WriteSession, user_id: UUID, step: int) -> bool:
    """Use the code of a time step up. Of several concurrent calls with the same step, one returns True."""
    return await _has_changed(session, _accepting(step).where(TotpSecret.user_id == user_id))


async def use_recovery_code(session: WriteSession, user_id: UUID, digest: bytes) -> bool:
    """Use a recovery code up. Of several concurrent calls with the same code, one returns True."""
    return await _has_changed(session, _using(digest).where(RecoveryCode.user_id == user_id))


def _accepting(step: int) -> Update:
    return (
        update(TotpSecret)
        .where(_IS_CONFIRMED, TotpSecret.last_step < step)
        .values(last_step=step, last_used_at=func.now())
    )


def _using(digest: bytes) -> Update:
    return (
        update(RecoveryCode)
        .where(RecoveryCode.digest == digest, RecoveryCode.used_at.is_(None))
        .values(used_at=func.now())
    )


async def _has_changed(session: WriteSession, statement: Update) -> bool:
    column = statement.entity_description["entity"].user_id
    statement = statement.returning(column).execution_options(synchronize_session=False)
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
    statement = delete(TotpSecret).where(TotpSecret.user_id == user_id).returning(_IS_CONFIRMED)
    return bool(await session.scalar(statement.add_cte(waiting, codes)))


async def create_challenge(
    session: WriteSession, values: Mapping[str, Any], *, lifetime: timedelta, ctes: Sequence[CTE] = ()
) -> None:
    """Insert a login that waits for the second factor. `ctes` run as parts of the same statement."""
    statement = insert(LoginChallenge).values(**values, expires_at=func.now() + lifetime)
    await session.execute(statement.add_cte(*ctes))


async def count_guess(session: WriteSession, challenge_id: UUID, *, most: int) -> Guessed | None:
    """Count a guess for a login that waits. None if it has expired, its account has changed, or it has had `most` guesses.

    The row stays locked until the transaction ends, so concurrent guesses cannot exceed the maximum.
    """
    sealed = select(TotpSecret.sealed).where(TotpSecret.user_id == LoginChallenge.user_id, _IS_CONFIRMED)
    columns = [getattr(LoginChallenge, name) for name in Guessed._fields if name != "sealed"]
    statement = (
        update(LoginChallenge)
        .where(
            LoginChallenge.id == challenge_id,
            LoginChallenge.expires_at > func.now(),
            LoginChallenge.failures < most,
            User.id == LoginChallenge.user_id,
            User.is_active,
            User.authz_version == LoginChallenge.authz_version,
        )
        .values(failures=LoginChallenge.failures + 1)
        .returning(*columns, sealed.scalar_subquery())
        .execution_options(synchronize_session=False)
    )
    return crud.only(Guessed, await session.execute(statement))


async def redeem_step(
    session: WriteSession, guessed: Guessed, step: int, *columns: ColumnElement[Any]
) -> Row[*tuple[Any, ...]] | None:
    """Complete a login with the code of a time step; see `_redeem`."""
    return await _redeem(session, guessed, _accepting(step), TotpSecret.user_id, columns)


async def redeem_recovery_code(
    session: WriteSession, guessed: Guessed, digest: bytes, *columns: ColumnElement[Any]
) -> Row[*tuple[Any, ...]] | None:
    """Complete a login with a recovery code; see `_redeem`."""
    return await _redeem(session, guessed, _using(digest), RecoveryCode.user_id, columns)


async def _redeem(
    session: WriteSession, guessed: Guessed, use: Update, owner: Any, columns: Sequence[ColumnElement[Any]]
) -> Row[*tuple[Any, ...]] | None:
    """Lock the account, use the factor and the waiting login up, and return these columns of the account.

    None if the account has changed, or the factor or the login has been used, also by a concurrent call. Each part reads the rows of the
    part before it, so the account is locked first.
    """
    account = (
        select(User.id.label("owner_id"), *columns)
        .where(User.id == guessed.user_id, User.is_active, User.authz_version == guessed.authz_version)
        .with_for_update(key_share=True, of=User)
        .cte("account")
        .prefix_with("MATERIALIZED")
    )
    waiting = (
        delete(LoginChallenge)
        .where(LoginChallenge.id == guessed.id, LoginChallenge.user_id == account.c.owner_id)
        .returning(LoginChallenge.user_id)
        .cte("waiting")
    )
    used = use.where(owner == waiting.c.user_id).returning(owner).cte("used")
    read = [column for column in account.c if column is not account.c.owner_id]
    statement = select(*read).join(used, used.c.user_id == account.c.owner_id)
    return (await session.execute(statement)).one_or_none()


async def list_sealed(session: ReadSession, after: UUID | None, *, limit: int) -> Sequence[Row[UUID, bytes]]:
    """Read sealed secrets, pending ones included, by ascending id of their account."""
    statement = select(TotpSecret.user_id, TotpSecret.sealed).order_by(TotpSecret.user_id).limit(limit)
    return (await session.execute(statement.where(TotpSecret.user_id > after) if after else statement)).all()


async def replace_sealed(session: WriteSession, user_id: UUID, *, old: bytes, new: bytes) -> None:
    """Store the same secret under another key, unless the secret has changed since `old` was read."""
    statement = update(TotpSecret).where(TotpSecret.user_id == user_id, TotpSecret.sealed == old).values(sealed=new)
    await session.execute(statement.execution_options(synchronize_session=False))


purge_challenges = partial(crud.remove_expired, key=LoginChallenge.id, expiry=LoginChallenge.expires_at)


async def purge_pending(
    session: WriteSession, _after: datetime | None, *, keep: timedelta, batch: int
) -> datetime | None:
    """Delete the oldest `batch` secrets that were not confirmed within `keep`. A step of `jobs.housekeeping`."""
    portion = (
        select(TotpSecret.user_id)
        .where(TotpSecret.confirmed_at.is_(None), TotpSecret.created_at < func.now() - keep)
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
