"""`app users reset-mfa`."""

import typer

from app.audit import service as audit
from app.core.commands import command_group, in_transaction
from app.core.db.database import WriteSession
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

    async def reset(session: WriteSession) -> None:
        user_id = await users_service.find_id(session, email)
        if user_id is None or await users_service.lock_account(session, user_id) is None:
            raise UserNotFoundError
        await service.reset(session, audit.SYSTEM, user_id)

    in_transaction(load_settings().database, reset)
    typer.echo(f"Removed the second factors of {email}, and ended its login sessions.")
