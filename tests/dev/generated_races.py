"""Concurrent changes of the references of a generated feature. `test_generated_features.py` runs this in a copy that has `articles`."""

import asyncio
from collections import Counter
from unittest.mock import patch

from tests.conftest import LoggedIn
from tests.races.site import Site

ARTICLES, NOTES = "/api/v1/articles", "/api/v1/notes"
ROUNDS = 10


async def note(site: Site, owner: LoggedIn) -> str:
    response = await site.client.post(NOTES, json={"title": "Milk"}, headers=owner.headers)
    assert response.status_code == 201
    return str(response.json()["id"])


async def article(site: Site, owner: LoggedIn, *notes: str) -> str:
    body = {"slug": "a", "title": "A", "body": "A", "state": "draft", "note_ids": notes}
    response = await site.client.post(ARTICLES, json=body, headers=owner.headers)
    assert response.status_code == 201
    return response.headers["Location"]


async def test_one_of_several_changes_of_the_same_version_wins(site: Site) -> None:
    user = await site.account()
    notes = [await note(site, user) for _ in range(3)]
    url = await article(site, user)

    for _ in range(ROUNDS):
        known = user.headers | {"If-Match": (await site.client.get(url)).headers["ETag"]}
        responses = await asyncio.gather(
            *(site.client.patch(url, json={"note_ids": [key]}, headers=known) for key in notes)
        )
        left = await site.client.get(url)

        (winner,) = (response for response in responses if response.status_code == 200)
        assert Counter(response.status_code for response in responses) == {200: 1, 412: 2}
        assert (left.headers["ETag"], left.json()) == (winner.headers["ETag"], winner.json())


async def test_no_reference_is_left_to_a_row_that_is_deleted_meanwhile(site: Site) -> None:
    user = await site.account()
    kept = await note(site, user)
    url = await article(site, user)

    for _ in range(ROUNDS):
        doomed = await note(site, user)
        changed, deleted = await asyncio.gather(
            site.client.patch(url, json={"note_ids": [kept, doomed]}, headers=user.headers),
            site.client.delete(f"{NOTES}/{doomed}", headers=user.headers),
        )

        # Gone before it was looked up, or between this and the write.
        assert (deleted.status_code, changed.status_code in {200, 404, 409}) == (204, True)
        assert doomed not in (await site.client.get(url)).json()["note_ids"]
        assert await site.fetch("SELECT note_id FROM article_notes WHERE note_id NOT IN (SELECT id FROM notes)") == []


async def test_the_number_of_references_does_not_change_the_number_of_statements(site: Site) -> None:
    user = await site.account()
    notes = [await note(site, user) for _ in range(20)]
    url = await article(site, user)
    numbers, executed = [], list[str]()

    with patch.object(site.database.query_log, "record", lambda text, _seconds: executed.append(text)):
        for keys in (notes[:1], notes):
            executed.clear()
            changed = await site.client.patch(url, json={"note_ids": keys}, headers=user.headers)
            listed = await site.client.get(ARTICLES)
            numbers.append((changed.status_code, listed.status_code, len(executed)))

    assert numbers[0] == numbers[1] == (200, 200, len(executed))
    assert executed
