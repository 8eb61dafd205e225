"""Query parameters of the audit log, and callers who may not read it."""

from urllib.parse import quote

import pytest

from tests.core.recording import Recording
from tests.hostile.attack import API, CANARY, USERS, Attack, Target, check_refusals
from tests.hostile.test_queries import CURSORS, NUMBERS, UNKNOWN_QUERIES, bad_cursor, refused

EVENTS = f"{API}/audit-events"
FILTERS = [
    *(refused(f"limit={text}", "limit", EVENTS) for text in NUMBERS),
    *(refused(query, "unknown", EVENTS) for query in UNKNOWN_QUERIES),
    *(refused(f"{name}={text}", name, EVENTS) for name in ("actor_id", "subject_id") for text in (
        "", "abc", "0", str(2**63), "null", "%00", "0192F0C1-A2B3-7C4D-8E5F-60718293A4B5", CANARY,
    )),
    *(refused(f"event={text}", "event", EVENTS) for text in ("", "x", "A.B", "a.b%00", "a." + "b" * 64, "%25.%25", CANARY)),
]  # fmt: skip
BAD_CURSORS = [bad_cursor(f"{EVENTS}?cursor={cursor}") for cursor in CURSORS]
FORBIDDEN = [
    Attack("a user at the log", 403, "forbidden", EVENTS, "GET", headers=(), who="user", codes=("insufficient_scope",))
]


@pytest.mark.parametrize("attacks", [FILTERS, BAD_CURSORS, FORBIDDEN], ids=["filters", "cursors", "scopes"])
async def test_invalid_requests_for_the_log_are_refused(
    target: Target, recording: Recording, subtests: pytest.Subtests, attacks: list[Attack]
) -> None:
    await check_refusals(target, recording, subtests, attacks)


async def test_a_cursor_of_another_list_is_refused(
    target: Target, recording: Recording, subtests: pytest.Subtests
) -> None:
    recording()
    page = await target.send(Attack("page", 200, "", f"{USERS}?limit=1", "GET", headers=(), who="admin"))

    await check_refusals(
        target, recording, subtests, [bad_cursor(f"{EVENTS}?cursor={quote(page.document['next_cursor'])}")]
    )
