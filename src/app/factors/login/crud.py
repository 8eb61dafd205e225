"""The statements about logins that wait for the second factor. Private to the services of `factors`."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import CTE, Row, SQLColumnExpression, Update, delete, func, insert, select, update

from app.core.db import crud
from app.core.db.database import WriteSession
from app.factors.crud import IS_CONFIRMED, owner_of
from app.factors.models import LoginChallenge, TotpSecret
from app.users.models import User


class Guessed(NamedTuple):
    """A login that waits for the second factor, with the guess that has just been counted."""

    id: UUID
    user_id: UUID
    authz_version: int
    scope: str
    is_over_limit: bool
    nonce: bytes
    pepper_id: int
    failures: int
    sealed: bytes | None


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
    sealed = select(TotpSecret.sealed).where(TotpSecret.user_id == LoginChallenge.user_id, IS_CONFIRMED)
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


async def redeem(
    session: WriteSession, guessed: Guessed, use: Update, columns: Sequence[SQLColumnExpression[Any]]
) -> Row[*tuple[Any, ...]] | None:
    """Lock the account, use the login that waits and the factor up, and return these columns of the account.

    None if the account has changed, or the login or the factor has been used, also by a concurrent call. Each part reads the rows of the
    part before it, so the account is locked first.
    """
    account = (
        select(User.id.label("owner_id"), *columns)
        .where(User.id == guessed.user_id, User.is_active, User.authz_version == guessed.authz_version)
        .with_for_update(key_share=True, of=User)
        .cte("account")
    )
    waiting = (
        delete(LoginChallenge)
        .where(LoginChallenge.id == guessed.id, LoginChallenge.user_id == account.c.owner_id)
        .returning(LoginChallenge.user_id)
        .cte("waiting")
    )
    owner = owner_of(use)
    used = use.where(owner == waiting.c.user_id).returning(owner).cte("used")
    read = [column for column in account.c if column is not account.c.owner_id]
    statement = select(*read).join(used, used.c.user_id == account.c.owner_id)
    return (await session.execute(statement)).one_or_none()


purge_challenges = partial(crud.remove_expired, key=LoginChallenge.id, expiry=LoginChallenge.expires_at)
