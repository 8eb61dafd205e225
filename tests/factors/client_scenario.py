"""A program that logs in with a second factor through a client generated from the OpenAPI document.

`test_generated_client.py` checks its types and runs it against a server. It contains no HTTP code of its own.
"""

import sys

import pyotp
from generated_client import AuthenticatedClient, Client
from generated_client.api.auth import complete_login, create_token
from generated_client.api.users import confirm_my_totp, create_my_totp
from generated_client.models import PasswordGrant, Problem, SecondLeg, TokenPair, TotpCode, TotpConfirmed, TotpPending


def enrol(client: AuthenticatedClient) -> list[str]:
    """Set up an app, and return the recovery codes."""
    pending = create_my_totp.sync(client=client)
    assert isinstance(pending, TotpPending)
    confirmed = confirm_my_totp.sync(client=client, body=TotpCode(code=pyotp.TOTP(pending.secret).now()))
    assert isinstance(confirmed, TotpConfirmed)
    codes: list[str] = confirmed.recovery_codes
    return codes


def begin(client: Client, email: str, password: str) -> TokenPair | str:
    """Give the password: the first leg. Return the tokens, or the `mfa_token`."""
    response = create_token.sync(
        client=client, body=PasswordGrant(grant_type="password", username=email, password=password)
    )
    if isinstance(response, TokenPair):
        return response
    assert isinstance(response, Problem)
    assert response.code == "mfa_required"
    assert response.methods == ["totp", "recovery_code"]
    assert isinstance(response.mfa_token, str)
    return response.mfa_token


def complete(client: Client, mfa_token: str, recovery_code: str) -> TokenPair | Problem | None:
    """Give a second factor: the second leg."""
    return complete_login.sync(client=client, body=SecondLeg(mfa_token=mfa_token, recovery_code=recovery_code))


if __name__ == "__main__":
    _, base_url, email, password = sys.argv
    with Client(base_url=base_url) as client:
        first = begin(client, email, password)
        assert isinstance(first, TokenPair)
        with AuthenticatedClient(base_url=base_url, token=first.access_token) as owner:
            codes = enrol(owner)
        mfa_token = begin(client, email, password)
        assert isinstance(mfa_token, str)
        wrong = complete(client, mfa_token, codes[0][:-1])
        assert isinstance(wrong, Problem)
        assert wrong.code == "invalid_grant"
        assert isinstance(complete(client, mfa_token, codes[0]), TokenPair)
