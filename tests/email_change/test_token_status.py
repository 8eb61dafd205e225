"""A request for a change of address checks the token in the database; see tests/auth/test_token_status.py."""

from app.core.security.hashing import PasswordHasher
from tests.auth.login_sessions import ME, start
from tests.auth.test_token_status import ENDS, add_account, answers, run, service
from tests.factories import PASSWORD


async def test_a_revocation_without_a_notification_ends_the_right_to_change_the_address(
    clone_url: str, hasher: PasswordHasher
) -> None:
    async with service(clone_url, "memory") as (client, database):
        tokens = await start(client, await add_account(database, hasher))
        await run(database, "ALTER TABLE sessions DISABLE TRIGGER sessions_end_is_published")
        await run(database, ENDS["session"], session_id=tokens.session_id)

        in_memory = await answers(client, tokens)
        body = {"new_email": "new@example.com", "password": PASSWORD}
        response = await client.post(f"{ME}/email", json=body, headers=tokens.headers)
        await run(database, "ALTER TABLE sessions ENABLE TRIGGER sessions_end_is_published")

    assert in_memory == 200
    assert (response.status_code, response.json()["code"]) == (401, "invalid_token")
