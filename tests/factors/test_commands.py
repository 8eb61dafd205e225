"""`app users reset-mfa`, with its effect in the database."""

import asyncio
import sys
from uuid import UUID

import pytest

from app.audit.service import Actor
from app.auth.settings import AuthSettings
from app.cli import main
from app.core.db.database import Database
from app.core.security.keys import load_key_ring
from app.core.security.rate_limits import make_rate_limiter
from app.factors.login import limits
from tests.conftest import make_settings
from tests.factories import PASSWORD
from tests.test_cli import Command, aftermath, app, assert_failed

__all__ = ["app"]


async def guess(url: str, user_id: UUID) -> None:
    """Count a guess as the application does."""
    settings = make_settings(url)
    database = Database(settings.database)
    limiter = make_rate_limiter(database, load_key_ring(settings.of(AuthSettings)), settings)
    await limiter.hit(*limits.guess(Actor(address="192.0.2.1"), user_id))
    await database.dispose()


def test_the_second_factors_of_an_account_are_removed(app: Command, clone_url: str) -> None:  # The fixture.
    app("users", "create-admin", "ada@example.com", url=clone_url, stdin=f"{PASSWORD}\n")
    aftermath(
        clone_url,
        "INSERT INTO totp_secrets (user_id, sealed, confirmed_at) SELECT id, 'x', now() FROM users",
    )
    aftermath(clone_url, "INSERT INTO recovery_codes (user_id, digest) SELECT id, 'x' FROM users")
    (owner,) = aftermath(clone_url, "SELECT id FROM users")
    asyncio.run(guess(clone_url, owner["id"]))

    code, out, errors = app("users", "reset-mfa", "Ada@Example.com", url=clone_url)

    assert (code, errors) == (0, "")
    assert out == "Removed the second factors of Ada@Example.com, and ended its login sessions.\n"
    for table in ("totp_secrets", "recovery_codes"):
        assert aftermath(clone_url, f"SELECT * FROM {table}") == []  # noqa: S608  # Our own names.
    hits = aftermath(clone_url, "SELECT split_part(key, ':', 1) AS name, hits FROM rate_limits ORDER BY key")
    assert {row["name"]: row["hits"] for row in hits} == {"mfa-account": 0, "mfa-account-day": 0, "mfa-address": 1}
    events = aftermath(clone_url, "SELECT event, actor_id FROM audit_events ORDER BY id")
    assert events[-1] == {"event": "auth.mfa_reset_by_admin", "actor_id": None}
    (job,) = aftermath(clone_url, "SELECT args::text AS args FROM procrastinate_jobs")
    assert "second_factor_reset" in job["args"]


def test_an_unknown_address_is_one_sentence(app: Command, clone_url: str) -> None:  # The fixture.
    result = app("users", "reset-mfa", "nobody@example.com", url=clone_url)

    assert_failed(result, "This user does not exist.")


def test_the_group_has_the_commands_of_both_features(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["app", "users", "--help"])
    with pytest.raises(SystemExit):
        main()

    output = capsys.readouterr().out
    assert "create-admin" in output
    assert "reset-mfa" in output
