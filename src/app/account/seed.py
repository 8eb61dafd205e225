"""Example accounts for `make seed`: an administrator and several users, who all have the same password."""

from app.core.config import HashingSettings
from app.core.db.database import WriteSession
from app.core.seeding import Seeding
from app.users import service
from app.users.roles import Role

PASSWORD = "seven tame geese walk home"
ACCOUNTS = (
    ("grace@example.com", "Grace Hopper", Role.ADMIN),
    ("ada@example.com", "Ada Lovelace", Role.USER),
    ("alan@example.com", "Alan Turing", Role.USER),
    ("edsger@example.com", "Edsger Dijkstra", Role.USER),
    ("katherine@example.com", "Katherine Johnson", Role.USER),
    ("mary@example.com", "Mary Jackson", Role.USER),
)


async def seed(session: WriteSession, seeding: Seeding) -> list[str]:
    min_length = seeding.settings.of(HashingSettings).password_min_length
    added = []
    for email, full_name, role in ACCOUNTS:
        account_id = await service.find_id(session, email)
        if account_id is None:
            account = await service.create_with_password(
                session,
                seeding.hasher,
                email=email,
                password=PASSWORD,
                min_length=min_length,
                full_name=full_name,
                role=role,
            )
            account_id = account.id
            added.append(email)
        seeding.account_ids.append(account_id)
    return added
