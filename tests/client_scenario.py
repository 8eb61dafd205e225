"""A program that uses the API through a client generated from the OpenAPI document.

`test_generated_client.py` checks its types and runs it against a server. It contains no HTTP code of its own.
"""

import sys
from uuid import uuid4

from generated_client import AuthenticatedClient, Client
from generated_client.api.auth import create_token
from generated_client.api.users import create_user, delete_user, list_users, read_me, read_user, update_user
from generated_client.models import (
    ListUsersSort,
    PasswordGrant,
    Problem,
    RefreshGrant,
    Role,
    TokenPair,
    UserCreate,
    UserPage,
    UserRead,
    UserUpdate,
)


def log_in(base_url: str, email: str, password: str) -> AuthenticatedClient:
    """Log in and refresh the tokens. Both grants are one operation."""
    grant: PasswordGrant | RefreshGrant = PasswordGrant(grant_type="password", username=email, password=password)
    with Client(base_url=base_url) as client:
        first = create_token.sync(client=client, body=grant)
        assert isinstance(first, TokenPair)
        grant = RefreshGrant(grant_type="refresh_token", refresh_token=first.refresh_token)
        second = create_token.sync(client=client, body=grant)
        assert isinstance(second, TokenPair)
    assert second.refresh_token != first.refresh_token
    return AuthenticatedClient(base_url=base_url, token=second.access_token, raise_on_unexpected_status=True)


def created(client: AuthenticatedClient, email: str) -> UserRead:
    user = create_user.sync(client=client, body=UserCreate(email=email, full_name="Grace Hopper"))
    assert isinstance(user, UserRead)
    assert (user.email, user.full_name, user.role) == (email, "Grace Hopper", Role.USER)
    return user


def list_all(client: AuthenticatedClient) -> list[UserRead]:
    """Read the whole list in pages of two."""
    users: list[UserRead] = []
    page = list_users.sync(client=client, limit=2, sort=ListUsersSort.EMAIL_DESCENDING)
    while isinstance(page, UserPage):
        users += page.items
        if page.next_cursor is None:
            return users
        page = list_users.sync(client=client, limit=2, sort=ListUsersSort.EMAIL_DESCENDING, cursor=page.next_cursor)
    raise AssertionError(page)


def use(client: AuthenticatedClient, email: str) -> None:
    me = read_me.sync(client=client)
    assert isinstance(me, UserRead)
    assert (me.email, me.role) == (email, Role.ADMIN)

    users = [created(client, f"grace{number}@example.com") for number in range(3)]
    assert list_all(client) == [*reversed(users), me]

    grace = read_user.sync_detailed(users[0].id, client=client)
    tag = grace.headers["ETag"]
    assert read_user.sync_detailed(users[0].id, client=client, if_none_match=tag).status_code == 304
    renamed = update_user.sync(users[0].id, client=client, body=UserUpdate(full_name=None), if_match=tag)
    assert isinstance(renamed, UserRead)
    assert renamed.full_name is None
    stale = update_user.sync(users[0].id, client=client, body=UserUpdate(is_active=False), if_match=tag)
    refused(stale, 412, "precondition_failed")

    assert delete_user.sync_detailed(users[1].id, client=client).status_code == 204
    refused(read_user.sync(users[1].id, client=client), 404, "user_not_found")


def check_errors(client: AuthenticatedClient, email: str) -> None:
    refused(read_user.sync(uuid4(), client=client), 404, "user_not_found")
    refused(create_user.sync(client=client, body=UserCreate(email=email.upper())), 409, "email_taken")
    problem = refused(create_user.sync(client=client, body=UserCreate(email="nobody")), 422, "validation_error")
    assert isinstance(problem.errors, list)
    assert [(one.pointer, one.code) for one in problem.errors] == [("#/email", "email_invalid")]
    refused(list_users.sync(client=client, cursor="invented"), 400, "invalid_cursor")


def refused(response: object, status: int, code: str) -> Problem:
    assert isinstance(response, Problem)
    assert (response.status, response.code) == (status, code)
    return response


if __name__ == "__main__":
    _, base_url, email, password = sys.argv
    with log_in(base_url, email, password) as client:
        use(client, email)
        check_errors(client, email)
    with AuthenticatedClient(base_url=base_url, token="invented") as stranger:
        refused(list_users.sync(client=stranger), 401, "invalid_token")
