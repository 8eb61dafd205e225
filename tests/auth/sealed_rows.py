"""A table with sealed columns that only tests have, and the part of a feature that declares them."""

from collections.abc import Iterable
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app import features
from app.core.security.resealing import SealedColumn
from app.core.security.sealing import Sealer


class Base(DeclarativeBase):
    """Declarative base of the table below."""


class Safe(Base):
    """A row with two secrets."""

    __tablename__ = "safes"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    owner_id: Mapped[UUID] = mapped_column(default=uuid4)
    gold: Mapped[bytes]
    silver: Mapped[bytes]


GOLD = SealedColumn(Safe.gold, owner=Safe.owner_id, purpose="gold")
SILVER = SealedColumn(Safe.silver, owner=Safe.owner_id, purpose="silver")


def with_sealed(monkeypatch: pytest.MonkeyPatch, *columns: SealedColumn) -> None:
    """Make these the only sealed columns of the application, those of a feature `probe`."""
    found, probe = features.parts, ModuleType("app.probe.sealed")
    vars(probe).update(SEALED=columns)
    monkeypatch.setattr(features, "parts", lambda part: iter([("probe", probe)]) if part == "sealed" else found(part))


def make_safe(sealer: Sealer, number: int = 0) -> Safe:
    """A safe whose secrets are `gold <number>` and `silver <number>`."""
    owner = uuid4()
    return Safe(
        id=uuid4(),
        owner_id=owner,
        gold=sealer.seal(b"gold %d" % number, purpose="gold", owner=owner),
        silver=sealer.seal(b"silver %d" % number, purpose="silver", owner=owner),
    )


async def make_table(session: AsyncSession, safes: Iterable[Safe] = ()) -> None:
    await (await session.connection()).run_sync(Base.metadata.create_all)
    session.add_all(safes)
    await session.commit()


async def secrets(session: AsyncSession, sealer: Sealer) -> list[tuple[int, bytes, int, bytes]]:
    """The key id and the secret of each column, of all rows, in the order of the secrets."""
    rows: list[Any] = list(await session.scalars(select(Safe), execution_options={"populate_existing": True}))
    return sorted(
        (
            (
                row.gold[0],
                sealer.unseal(row.gold, purpose="gold", owner=row.owner_id),
                row.silver[0],
                sealer.unseal(row.silver, purpose="silver", owner=row.owner_id),
            )
            for row in rows
        ),
        key=lambda row: row[1],
    )
