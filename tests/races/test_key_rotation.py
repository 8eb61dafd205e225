"""Key rotation under load: two server processes that reload the file at different times, and clients without a pause."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.auth.settings import AuthSettings
from app.core.security import rotation
from app.core.security.keys import generate_key_set, load_key_ring
from app.core.security.rotation import KeyStatus
from tests.auth.forge import encode, read_part
from tests.conftest import cloned
from tests.races.workers import ME, REVOKE, Answer, Fleet, fleet

CLIENTS = int(os.environ.get("ROTATION_CLIENTS", "4"))
WORKERS = int(os.environ.get("RACE_WORKERS", "2"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> AuthSettings:
    """Settings with a key set file."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_text(generate_key_set())
    return AuthSettings(signing_keys_file=file)


@pytest.fixture(scope="module")
async def workers(template_url: str, settings: AuthSettings) -> AsyncIterator[Fleet]:
    """Server processes that read this file."""
    environment = {"APP_AUTH__SIGNING_KEYS": "", "APP_AUTH__SIGNING_KEYS_FILE": str(settings.signing_keys_file)}
    async with cloned(template_url) as url, fleet(url, *[environment for _ in range(WORKERS)]) as fleet_:
        yield fleet_


class Load:
    """Clients that log in, read their account and refresh without a pause, each request at a random process."""

    def __init__(self, workers: Fleet) -> None:
        self._workers = workers
        self._stop = asyncio.Event()
        self.failed: list[Answer] = []
        self.rounds = 0
        self.kids: set[str] = set()

    async def run(self, email: str) -> None:
        while not self._stop.is_set():
            pair = await self._expect(await self._workers.any.log_in(email))
            for _ in range(3):
                if pair:
                    pair = await self._use_and_refresh(pair)
            self.rounds += 1

    def stop(self) -> None:
        self._stop.set()

    async def next_rounds(self) -> None:
        """Wait until every client has completed a round with the current keys."""
        until = self.rounds + 2 * CLIENTS
        async with asyncio.timeout(60):
            while self.rounds < until and not self.failed:  # noqa: ASYNC110  # The clients count the rounds, without an event.
                await asyncio.sleep(0.01)

    async def signed_by(self, kid: str) -> None:
        """Wait until a client has received a token signed with this key."""
        async with asyncio.timeout(60):
            while kid not in self.kids and not self.failed:  # noqa: ASYNC110  # As above.
                await asyncio.sleep(0.01)

    async def _use_and_refresh(self, pair: dict[str, Any]) -> dict[str, Any]:
        self.kids.add(str(read_part(pair["access_token"], 0)["kid"]))
        await self._expect(await self._workers.any.request("GET", ME, token=pair["access_token"]))
        successor = await self._expect(await self._workers.any.refresh(pair["refresh_token"]))
        # A second tab with the same token gets the same successor, also at another process.
        again = await self._expect(await self._workers.any.refresh(pair["refresh_token"]))
        if again.get("refresh_token") != successor.get("refresh_token"):
            self.failed.append(Answer(0, {"siblings": [again, successor]}))
        return successor

    async def _expect(self, answer: Answer) -> dict[str, Any]:
        if answer.status != 200:
            self.failed.append(answer)
        return answer.body


def active_keys(settings: AuthSettings) -> list[KeyStatus]:
    return [key for key in rotation.list_keys(settings) if key.state == "active"]


async def test_keys_are_rotated_under_load_without_a_failed_request(workers: Fleet, settings: AuthSettings) -> None:
    before = load_key_ring(settings)
    idle = await workers.log_in((await workers.accounts(1))[0])
    load = Load(workers)

    async with asyncio.TaskGroup() as group:
        for email in await workers.accounts(CLIENTS):
            group.create_task(load.run(email))
        await load.next_rounds()
        for old in active_keys(settings):
            # The hardest case: without the waiting time that the command requires.
            with rotation.changing(settings) as keys:
                rotation.add(keys, old.kind, "ES256")
                rotation.retire(keys, old.kid, force=True)
            await load.next_rounds()
        await load.signed_by(load_key_ring(settings).active)
        load.stop()

    ring = load_key_ring(settings)
    assert load.failed == []
    assert load.kids == {before.active, ring.active}

    # An earlier session stays valid while its keys exist, and changes to the new keys.
    assert all([await worker.accepts(idle["access_token"]) for worker in workers.workers])
    # The number of refreshes until then depends on when the processes reload the file.
    pepper_id = 0
    async with asyncio.timeout(30):
        while pepper_id != ring.active_pepper:
            moved = await workers.any.refresh(idle["refresh_token"])
            assert moved.status == 200
            idle = moved.body
            row = await workers.session_row(idle["access_token"])
            assert row
            pepper_id = row["pepper_id"]


async def test_tokens_of_a_process_with_new_keys_are_valid_at_one_that_has_not_reloaded(
    workers: Fleet, settings: AuthSettings
) -> None:
    (email,) = await workers.accounts(1)
    first, second = workers.workers[:2]
    # Several attempts, because the second process may reload the file just in time.
    for _ in range(3):
        known = await workers.log_in(email)
        for old in active_keys(settings):
            with rotation.changing(settings) as keys:
                rotation.add(keys, old.kind, "ES256")
                rotation.retire(keys, old.kid, force=True)
        # An unknown key id makes the first process reload the file.
        header = encode(read_part(known["access_token"], 0) | {"kid": "unknown"})
        assert not await first.accepts(f"{header}.{known['access_token'].partition('.')[2]}")
        pair = (await first.log_in(email)).body
        assert read_part(pair["access_token"], 0)["kid"] == load_key_ring(settings).active

        refreshed, shown = await second.refresh(pair["refresh_token"]), await second.accepts(pair["access_token"])

        assert (refreshed.status, shown) == (200, True)


async def test_tokens_made_with_a_removed_key_are_invalid(workers: Fleet, settings: AuthSettings) -> None:
    (email,) = await workers.accounts(1)
    before = await workers.log_in(email)
    # Every process has verified the token and cached the result.
    assert all([await worker.accepts(before["access_token"]) for worker in workers.workers])

    for old in active_keys(settings):
        with rotation.changing(settings) as keys:
            rotation.add(keys, old.kind, "ES256")
            rotation.retire(keys, old.kid, force=True)
            rotation.remove(keys, old.kid, refresh_token_lifetime=rotation.SIGNED_TOKEN_LIFETIME, force=True)

    for worker in workers.workers:
        async with asyncio.timeout(10):
            while await worker.accepts(before["access_token"]):  # noqa: ASYNC110  # Another process changes.
                await asyncio.sleep(0.01)
        assert (await worker.refresh(before["refresh_token"])).status == 400
        assert (await worker.request("POST", REVOKE, form={"token": before["refresh_token"]})).status == 200
        after = await worker.log_in(email)
        assert await worker.accepts(after.body["access_token"])
