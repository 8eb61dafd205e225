"""`app users …`."""

import sys
from contextlib import closing
from typing import Annotated

import typer
from pydantic import ValidationError

from app.account.schemas import NewAccount
from app.auth.settings import AuthSettings
from app.core.commands import command_group, in_transaction
from app.core.errors import FieldError, InvalidInputError
from app.core.security.hashing import PasswordHasher
from app.core.validation_messages import detail_of
from app.settings import load_settings
from app.users import service as users_service

users = command_group("users", "Accounts.")
COMMANDS = (users,)


@users.command("create-admin")
def create_admin(
    email: str,
    full_name: Annotated[str | None, typer.Option(help="Full name of the administrator.")] = None,
) -> None:
    """Create an administrator. The command asks for the password, or reads it from standard input."""
    settings = load_settings()
    auth = settings.of(AuthSettings)
    account = _validated(email, _ask_password(), full_name)
    users_service.refuse_special_use_domain(settings, account.email)
    with closing(PasswordHasher(auth)) as hasher:
        user = in_transaction(
            settings.database,
            lambda session: users_service.create_admin(
                session,
                hasher,
                email=account.email,
                password=account.password.get_secret_value(),
                full_name=account.full_name,
                min_length=auth.password_min_length,
            ),
        )
    typer.echo(f"Created administrator {email} ({user.id}).")


def _validated(email: str, password: str, full_name: str | None) -> NewAccount:
    """Return the account if it passes the validation of requests. `InvalidInputError` if not."""
    try:
        return NewAccount.model_validate({"email": email, "password": password, "full_name": full_name})
    except ValidationError as error:
        refused = (FieldError(f"#/{one['loc'][0]}", one["type"], detail_of(one)) for one in error.errors())
        raise InvalidInputError(*refused) from error


def _ask_password() -> str:
    if sys.stdin.isatty():
        answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        return answer
    return sys.stdin.readline().rstrip("\n")
