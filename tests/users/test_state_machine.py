"""Two concurrent clients against a model: some order of their requests must explain all responses and rows.

Every test run includes a short run. The long one:

    STATE_MACHINE_RUNS=500 python -m pytest -n0 tests/users/test_state_machine.py
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any, override
from uuid import UUID, uuid4

import pytest
from httpx2 import AsyncClient, Response
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from app.core.db.database import Database
from app.core.schemas.emails import identity
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from app.users.roles import GRANTS, SCOPES, Role
from tests.auth.forge import Forge, signing_jwk
from tests.conftest import KEY_SET, log_in, make_settings, running
from tests.factories import make_user

RUNS = int(os.environ.get("STATE_MACHINE_RUNS", "12"))
STEPS = 15
USERS = "/api/v1/users"
# Few addresses, some in two equivalent spellings, so that the requests often collide.
EMAILS = (
    "ada@example.com",
    "ADA@Example.com",
    "b\u00e9a@example.com",
    "BE\u0301A@example.com",
    "cleo@example.com",
    "dora@example.com",
)

type Headers = dict[str, str]
type Answer = tuple[Any, ...]


@dataclass(frozen=True)
class Account:
    """An account in the model."""

    email: str
    full_name: str | None
    role: str
    is_active: bool
    version: int = 1
    # An administrator who cannot log in does not count as one.
    has_password: bool = field(default=False, compare=False)


type State = dict[str, Account]


@dataclass(frozen=True)
class Request:
    """One request of a client."""

    method: str
    user_id: str | None = None
    body: dict[str, Any] | None = None
    version: int | None = None
    query: dict[str, Any] | None = None

    async def send(self, client: AsyncClient, headers: Headers) -> Response:
        path = USERS if self.user_id is None else f"{USERS}/{self.user_id}"
        conditions = {} if self.version is None else {"If-Match": f'"{self.version}"'}
        return await client.request(self.method, path, json=self.body, params=self.query, headers=headers | conditions)


def observed(response: Response) -> Answer:
    """Return the parts of a response that the model predicts."""
    if response.is_error:
        return (response.status_code, response.json()["code"])
    if response.status_code == 204:
        return (204,)
    body = response.json()
    if "items" in body:
        return (200, *(item["id"] for item in body["items"] if not item["email"].startswith("actor")))
    shown = Account(
        body["email"], body["full_name"], body["role"], body["is_active"], int(response.headers["etag"].strip('"'))
    )
    return (response.status_code, shown)


def predict(state: State, request: Request, response: Response) -> tuple[Answer, State, int]:
    """Return the expected response, the state afterwards, and the number of new events. The server chooses the id of a new account."""
    match request:
        case Request("POST", body=body) if body is not None:
            return _predict_creation(state, body, response)
        case Request("GET", user_id=None, query=query) if query is not None:
            return (200, *_listed(state, query)), state, 0
        case Request("GET", user_id=str(user_id)):
            return ((200, state[user_id]) if user_id in state else (404, "user_not_found")), state, 0
        case Request(_, user_id=str(user_id)):
            return _predict_change(state, request, user_id)
    raise AssertionError(request)


def _predict_creation(state: State, body: dict[str, Any], response: Response) -> tuple[Answer, State, int]:
    keys = {identity(account.email) for account in state.values()}
    if identity(body["email"]) in keys:
        return (409, "email_taken"), state, 0
    if response.status_code != 201:
        return (201,), state, 1
    shown = response.json()
    # The server chooses the stored form of the address, and the id.
    same = identity(shown["email"]) == identity(body["email"])
    account = Account(shown["email"], body["full_name"], body["role"], is_active=True)
    return (201, account if same else None), state | {shown["id"]: account}, 1


def _predict_change(state: State, request: Request, user_id: str) -> tuple[Answer, State, int]:
    body = request.body or {}
    if user_id not in state:
        return (404, "user_not_found"), state, 0
    account = state[user_id]
    if request.version not in {None, account.version}:
        return (412, "precondition_failed"), state, 0
    removes_admin = request.method == "DELETE" or body.get("role") == "user" or body.get("is_active") is False
    admins = {key for key, other in state.items() if other.role == "admin" and other.is_active and other.has_password}
    if removes_admin and account.role == "admin" and account.is_active and admins <= {user_id}:
        return (409, "last_admin"), state, 0
    if request.method == "DELETE":
        return (204,), {key: other for key, other in state.items() if key != user_id}, 1
    changed = [name for name, value in body.items() if getattr(account, name) != value]
    if changed:
        account = replace(account, **body, version=account.version + 1)
    return (200, account), state | {user_id: account}, len(changed)


def _listed(state: State, query: dict[str, Any]) -> list[str]:
    found = [
        (identity(account.email), user_id)
        for user_id, account in state.items()
        if query.get("role") in {None, account.role}
        and query.get("is_active") in {None, str(account.is_active).lower()}
        and ("email" not in query or identity(account.email) == identity(query["email"]))
    ]
    return [user_id for _, user_id in sorted(found, reverse=query["sort"].startswith("-"))]


@dataclass
class World:
    """Two applications with one database, like two processes, and a client of each."""

    loop: asyncio.AbstractEventLoop
    clients: tuple[AsyncClient, AsyncClient]
    database: Database
    tokens: tuple[Forge, Forge]

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop, from the thread of hypothesis."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=60)

    def headers(self) -> tuple[Headers, Headers]:
        """Return the headers of two ordinary accounts, to which `world` grants every scope. So the model contains all administrators."""
        now = int(time.time())
        claims = {"scope": " ".join(sorted(SCOPES)), "iat": now, "auth_time": now, "exp": now + 600}
        first, second = ({"Authorization": f"Bearer {forge.with_claims(**claims)}"} for forge in self.tokens)
        return first, second

    async def rows(self) -> tuple[State, int]:
        """Read the accounts and the number of events from the database."""
        async with self.database.engine.connect() as connection:
            users = await connection.exec_driver_sql("SELECT * FROM users WHERE email NOT LIKE 'actor%%'")
            count = await connection.exec_driver_sql("SELECT count(*) FROM audit_events WHERE event LIKE 'users.%%'")
            state = {
                str(row.id): Account(
                    row.email, row.full_name, row.role, row.is_active, row.version, bool(row.hashed_password)
                )
                for row in users
            }
            return state, int(count.scalar_one())

    async def set_password(self, user_id: str) -> None:
        """Give an account what its owner does with the mailed link."""
        statement = "UPDATE users SET hashed_password = 'set', email_verified_at = now() WHERE id = $1"
        async with self.database.engine.begin() as connection:
            await connection.exec_driver_sql(statement, (UUID(user_id),))

    async def clear(self) -> int:
        """Delete all accounts of the model. Returns the number of events, which cannot be deleted."""
        async with self.database.engine.begin() as connection:
            await connection.exec_driver_sql("DELETE FROM users WHERE email NOT LIKE 'actor%%'")
        return (await self.rows())[1]


@pytest.fixture
async def world(clone_url: str, hasher: PasswordHasher, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """The two running applications."""
    monkeypatch.setitem(GRANTS, Role.USER, GRANTS[Role.ADMIN])
    configuration = make_settings(clone_url)
    databases = Database(configuration.database), Database(configuration.database)
    async with databases[0].begin() as session:
        actors = [await make_user(session, hasher, email=f"actor{number}@example.com") for number in (1, 2)]
    async with (
        running(create_app(configuration, databases[0])) as first,
        running(create_app(configuration, databases[1])) as second,
    ):
        headers = [await log_in(client, actor.email) for client, actor in zip((first, second), actors, strict=True)]
        forges = [Forge(one["Authorization"].removeprefix("Bearer "), signing_jwk(KEY_SET)) for one in headers]
        yield World(asyncio.get_running_loop(), (first, second), databases[0], (forges[0], forges[1]))
    for database in databases:
        await database.dispose()


NAMES = st.sampled_from([None, "Ada", "B\u00e9a"])
ROLES = st.sampled_from(["user", "admin"])
CREATIONS = st.builds(
    lambda email, name, role: Request("POST", body={"email": email, "full_name": name, "role": role}),
    st.sampled_from(EMAILS),
    NAMES,
    ROLES,
)
LISTS = st.builds(
    lambda sort, filters: Request("GET", query={"sort": sort, "limit": 100, **filters}),
    st.sampled_from(["email", "-email"]),
    st.fixed_dictionaries(
        {},
        optional={
            "role": ROLES,
            "is_active": st.sampled_from(["true", "false"]),
            "email": st.sampled_from(EMAILS),
        },
    ),
)
CHANGES = st.fixed_dictionaries({}, optional={"full_name": NAMES, "role": ROLES, "is_active": st.booleans()})
# The account, as an index into all accounts that ever existed, and whether the request has `If-Match`.
TARGETS = st.tuples(st.integers(0, 7), st.sampled_from(["any", "current", "stale"]))


class TwoClients(RuleBasedStateMachine):
    """The actions of two administrators."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.state: State = {}
        self.known: list[str] = [str(uuid4())]
        self.events = self.world.run(self.world.clear())
        self.headers = self.world.headers()

    def aim(self, method: str, whom: tuple[int, str], body: dict[str, Any] | None = None) -> Request:
        place, condition = whom
        user_id = self.known[-1 - place % len(self.known)]
        current = self.state[user_id].version if user_id in self.state else 1
        version = {"any": None, "current": current, "stale": current + 1}[condition]
        return Request(method, user_id, body, version)

    def perform(self, *requests: Request) -> None:
        """Send the requests concurrently, and find an order that explains the responses and the rows."""
        seats = zip(requests, self.world.clients, self.headers, strict=False)
        exchanges = [request.send(client, headers) for request, client, headers in seats]

        async def at_once() -> list[Response]:
            return await asyncio.gather(*exchanges)

        responses = self.world.run(at_once())
        actual, count = self.world.run(self.world.rows())
        for order in permutations(range(len(requests))):
            state, recorded, explained = self.state, self.events, True
            for index in order:
                answer, state, events = predict(state, requests[index], responses[index])
                recorded += events
                explained = explained and answer == observed(responses[index])
            if explained and state == actual and recorded == count:
                self.state, self.events = state, recorded
                self.known += [user_id for user_id in state if user_id not in self.known]
                return
        story = [(request, observed(response)) for request, response in zip(requests, responses, strict=True)]
        raise AssertionError((self.state, story, actual, count - self.events))

    @rule(request=CREATIONS)
    def create(self, request: Request) -> None:
        self.perform(request)

    @rule(whom=TARGETS, body=CHANGES)
    def update(self, whom: tuple[int, str], body: dict[str, Any]) -> None:
        self.perform(self.aim("PATCH", whom, body))

    @rule(whom=TARGETS)
    def set_password(self, whom: tuple[int, str]) -> None:
        user_id = self.aim("GET", whom).user_id
        if user_id in self.state:
            self.world.run(self.world.set_password(user_id))
            self.state = self.state | {user_id: replace(self.state[user_id], has_password=True)}

    @rule(whom=TARGETS)
    def delete(self, whom: tuple[int, str]) -> None:
        self.perform(self.aim("DELETE", whom))

    @rule(whom=TARGETS)
    def read(self, whom: tuple[int, str]) -> None:
        self.perform(replace(self.aim("GET", whom), version=None))

    @rule(request=LISTS)
    def list_accounts(self, request: Request) -> None:
        self.perform(request)

    @rule(one=CREATIONS, other=CREATIONS)
    def create_at_once(self, one: Request, other: Request) -> None:
        self.perform(one, other)

    @rule(one=TARGETS, other=TARGETS, changes=st.tuples(CHANGES, CHANGES))
    def update_at_once(
        self, one: tuple[int, str], other: tuple[int, str], changes: tuple[dict[str, Any], dict[str, Any]]
    ) -> None:
        self.perform(self.aim("PATCH", one, changes[0]), self.aim("PATCH", other, changes[1]))

    @rule(one=TARGETS, other=TARGETS, body=CHANGES)
    def delete_and_update_at_once(self, one: tuple[int, str], other: tuple[int, str], body: dict[str, Any]) -> None:
        self.perform(self.aim("DELETE", one), self.aim("PATCH", other, body))

    @rule(one=TARGETS, other=TARGETS)
    def delete_at_once(self, one: tuple[int, str], other: tuple[int, str]) -> None:
        self.perform(self.aim("DELETE", one), self.aim("DELETE", other))

    @rule(one=TARGETS, other=CREATIONS)
    def delete_and_create_at_once(self, one: tuple[int, str], other: Request) -> None:
        self.perform(self.aim("DELETE", one), other)

    @rule(one=CREATIONS, other=LISTS)
    def create_and_list_at_once(self, one: Request, other: Request) -> None:
        self.perform(one, other)

    @rule(sort=st.sampled_from(["email", "-email"]), limit=st.integers(1, 3))
    def walk_the_pages(self, sort: str, limit: int) -> None:
        async def walk() -> list[str]:
            found: list[str] = []
            query: dict[str, Any] = {"sort": sort, "limit": limit}
            for number in range(100):
                turn = number % 2
                response = await self.world.clients[turn].get(USERS, params=query, headers=self.headers[turn])
                found += [item["id"] for item in response.json()["items"] if not item["email"].startswith("actor")]
                query["cursor"] = response.json()["next_cursor"]
                if query["cursor"] is None:
                    break
            return found

        assert self.world.run(walk()) == _listed(self.state, {"sort": sort})

    @invariant()
    def addresses_are_unique_and_ids_stay(self) -> None:
        keys = [identity(account.email) for account in self.state.values()]
        assert len(keys) == len(set(keys))
        assert all(UUID(user_id).version == 7 for user_id in self.state)

    @override
    def teardown(self) -> None:
        """Do nothing: the next run deletes the accounts."""


async def test_the_responses_to_two_clients_always_match_the_model(world: World) -> None:
    machine = type("Machine", (TwoClients,), {"world": world})
    profile = settings(
        max_examples=RUNS,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )

    await asyncio.to_thread(run_state_machine_as_test, machine, settings=profile)
