"""Invalid values in the requests for a change of address."""

import json

import pytest

from tests.core.recording import Recording
from tests.factories import PASSWORD
from tests.hostile.attack import API, ME, Attack, Target, check_refusals
from tests.hostile.test_accounts import BAD_ADDRESSES, BAD_LINKS, BAD_PASSWORDS, BAD_SECRETS, of_body

CHANGE = f"{ME}/email"
CONFIRM = f"{API}/auth/email/confirm"
MEMBERS = [
    *(
        of_body(f"new_email {each!a}", CHANGE, {"password": PASSWORD, "new_email": each}, who="user")
        for each in BAD_ADDRESSES
    ),
    *(
        of_body(f"password {each!a}", CHANGE, {"new_email": "v@x.co", "password": each}, who="user")
        for each in BAD_SECRETS
    ),
    *(of_body(f"token {each!a}", CONFIRM, {"token": each}) for each in BAD_SECRETS),
]
LINKS = [
    of_body(f"confirm {name}", CONFIRM, {"token": secret}, "invalid_token", status=400, problem="invalid-token")
    for name, secret in BAD_LINKS
]
SECRETS = [
    Attack(
        f"the password {secret[:20]!a}", 403, "forbidden", CHANGE, "POST",
        json.dumps({"new_email": "v@example.com", "password": secret}).encode(),
        who="user", codes=("wrong_password",), writes=frozenset({"audit_events"}),
    )
    for secret in BAD_PASSWORDS
]  # fmt: skip


@pytest.mark.parametrize("attacks", [MEMBERS, LINKS, SECRETS], ids=["members", "links", "secrets"])
async def test_invalid_values_are_refused(
    target: Target, recording: Recording, subtests: pytest.Subtests, attacks: list[Attack]
) -> None:
    await check_refusals(target, recording, subtests, attacks)
