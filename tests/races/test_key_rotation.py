"""Keys rotated under load: two server processes that read the file at different moments, and clients that never stop."""

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
    """Settings of a key set file."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_text(generate_key_set())
    return AuthSettings(signing_keys_file=file)


@pytest.fixture(scope="module")
async def workers(template_url: str, settings: AuthSettings) -> AsyncIterator[Fleet]:
    """Server processes that read their keys from that file."""
    environment = {"APP_AUTH__SIGNING_KEYS": "", "APP_AUTH__SIGNING_KEYS_FILE": str(settings.signing_keys_file)}
    async with cloned(template_url) as url, fleet(url, *[environment for _ in range(WORKERS)]) as fleet_:
        yield fleet_


class Load:
    """Clients that log in, read their account and refresh without a pause, each request somewhere else."""

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
                    pair = await self._go_on(pair)
            self.rounds += 1

    def stop(self) -> None:
        self._stop.set()

    async def next_rounds(self) -> None:
        """Wait until every client has been through everything with the keys as they are."""
        until = self.rounds + 2 * CLIENTS
        async with asyncio.timeout(60):
            while self.rounds < until and not self.failed:  # noqa: ASYNC110  # It is the clients that count.
                await asyncio.sleep(0.01)

    async def signed_by(self, kid: str) -> None:
        """Wait until a token has come that was signed with this key."""
        async with asyncio.timeout(60):
            while kid not in self.kids and not self.failed:  # noqa: ASYNC110  # As above.
                await asyncio.sleep(0.01)

    async def _go_on(self, pair: dict[str, Any]) -> dict[str, Any]:
        self.kids.add(str(read_part(pair["access_token"], 0)["kid"]))
        await self._expect(await self._workers.any.request("GET", ME, token=pair["access_token"]))
        successor = await self._expect(await self._workers.any.refresh(pair["refresh_token"]))
        # A second tab with the same token, at another process, gets the same successor.
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
            # At once, without the time to become known that the command asks for: the hardest case.
            with rotation.changing(settings) as keys:
                rotation.add(keys, old.kind, "ES256")
                rotation.retire(keys, old.kid, force=True)
            await load.next_rounds()
        await load.signed_by(load_key_ring(settings).active)
        load.stop()

    ring = load_key_ring(settings)
    assert load.failed == []
    assert load.kids == {before.active, ring.active}

    # A session from before goes on for as long as its keys are kept, and moves on to the new ones.
    assert all([await worker.accepts(idle["access_token"]) for worker in workers.workers])
    # How often it is refreshed until then is a matter of when the processes look at the file.
    pepper_id = 0
    async with asyncio.timeout(30):
        while pepper_id != ring.active_pepper:
            moved = await workers.any.refresh(idle["refresh_token"])
            assert moved.status == 200
            idle = moved.body
            row = await workers.session_row(idle["access_token"])
            assert row
            pepper_id = row["pepper_id"]


async def test_what_is_made_by_a_process_that_knows_is_good_at_one_that_does_not_yet(
    workers: Fleet, settings: AuthSettings
) -> None:
    (email,) = await workers.accounts(1)
    first, second = workers.workers[:2]
    # More than once: the clock of the second may come just in time.
    for _ in range(3):
        known = await workers.log_in(email)
        for old in active_keys(settings):
            with rotation.changing(settings) as keys:
                rotation.add(keys, old.kind, "ES256")
                rotation.retire(keys, old.kid, force=True)
        # A key that the first does not know makes it look.
        header = encode(read_part(known["access_token"], 0) | {"kid": "unknown"})
        assert not await first.accepts(f"{header}.{known['access_token'].partition('.')[2]}")
        pair = (await first.log_in(email)).body
        assert read_part(pair["access_token"], 0)["kid"] == load_key_ring(settings).active

        refreshed, shown = await second.refresh(pair["refresh_token"]), await second.accepts(pair["access_token"])

        assert (refreshed.status, shown) == (200, True)


async def test_what_was_made_with_a_removed_key_is_worth_nothing(workers: Fleet, settings: AuthSettings) -> None:
    (email,) = await workers.accounts(1)
    before = await workers.log_in(email)
    # They have seen it, and remember that its signature was right.
    assert all([await worker.accepts(before["access_token"]) for worker in workers.workers])

    for old in active_keys(settings):
        with rotation.changing(settings) as keys:
            rotation.add(keys, old.kind, "ES256")
            rotation.retire(keys, old.kid, force=True)
            rotation.remove(keys, old.kid, refresh_token_lifetime=rotation.SIGNED_TOKEN_LIFETIME, force=True)

    for worker in workers.workers:
        async with asyncio.timeout(10):
            while await worker.accepts(before["access_token"]):  # noqa: ASYNC110  # It is another process that changes.
                await asyncio.sleep(0.01)
        assert (await worker.refresh(before["refresh_token"])).status == 400
        assert (await worker.request("POST", REVOKE, form={"token": before["refresh_token"]})).status == 200
        after = await worker.log_in(email)
        assert await worker.accepts(after.body["access_token"])
