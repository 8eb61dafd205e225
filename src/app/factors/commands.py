"""`app users reset-mfa`."""

import typer

from app.audit import service as audit
from app.auth.settings import AuthSettings
from app.core.commands import command_group, with_database
from app.core.db.database import Database
from app.core.security.keys import load_key_ring
from app.core.security.rate_limits import make_rate_limiter
from app.factors import service
from app.settings import load_settings
from app.users import service as users_service
from app.users.errors import UserNotFoundError

# The group of the feature `account`, which adds its commands to it.
users = command_group("users", "Accounts.")
COMMANDS = (users,)


@users.command("reset-mfa")
def reset_mfa(email: str) -> None:
    """Remove the second factors of an account whose owner has lost them. Its login sessions end, and its owner gets a mail."""
    settings = load_settings()
    keys = load_key_ring(settings.of(AuthSettings))

    async def reset(database: Database) -> None:
        limiter = make_rate_limiter(database, keys, settings)
        async with database.begin() as session:
            user_id = await users_service.find_id(session, email)
            if user_id is None or await users_service.lock_account(session, user_id) is None:
                raise UserNotFoundError
            await service.reset(session, limiter, audit.SYSTEM, user_id)

    with_database(settings.database, reset)
    typer.echo(f"Removed the second factors of {email}, and ended its login sessions.")
