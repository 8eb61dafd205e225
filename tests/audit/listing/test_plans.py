"""Query plans for each filter and sort order of the audit log, with 100,000 events; see tests/users/test_plans.py."""

import itertools
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import text

from app.audit.listing import service
from app.audit.listing.schemas import AuditEventQuery
from app.audit.models import AuditEvent
from app.core.db.keyset import PageRequest, Position
from tests.volume import EVENTS, ROWS, explaining, filled

NEARLY_PAGE = 2 * 51
# Each account is the actor or the subject of about a hundred events.
MOST_FETCHED = ROWS / 100

ACTOR = "a8d2e0d0-1a6e-7d5c-8f4d-0d5d1f6a7b11"
FILTERS: dict[str, dict[str, str]] = {
    "all": {},
    "actor": {"actor_id": ACTOR},
    "subject": {"subject_id": ACTOR},
    "rare event": {"event": "users.deleted"},
    "common event": {"event": "auth.login_succeeded"},
    "unknown event": {"event": "users.exploded"},
    "late": {"after": "2021-11-20T00:00:00Z"},
    "future": {"after": "2030-01-01T00:00:00Z"},
    "early": {"before": "2020-01-02T00:00:00Z"},
    "day": {"after": "2021-01-02T00:00:00Z", "before": "2021-01-03T00:00:00Z"},
}
SORTS = ("occurred_at", "-occurred_at")
MIDDLE: Position = (datetime(2020, 9, 1, tzinfo=UTC), UUID(int=0))


@pytest.mark.slow
async def test_no_page_of_the_log_scans_or_sorts_the_table(template_url: str) -> None:
    failures: list[str] = []
    used: set[str] = set()
    async with filled(template_url, EVENTS) as database, explaining(database) as explainer:
        async with database.read_sessions() as session:
            actor_id: UUID = (await session.execute(text("SELECT actor_id FROM audit_events LIMIT 1"))).scalar_one()
        pairs = [
            pair
            for pair in itertools.combinations(list(FILTERS)[1:], 2)
            if FILTERS[pair[0]].keys().isdisjoint(FILTERS[pair[1]])
        ]
        selections = [(name,) for name in FILTERS] + pairs
        for names, sort, position in itertools.product(selections, SORTS, (None, MIDDLE)):
            chosen = {key: value for name in names for key, value in FILTERS[name].items()}
            given = {key: str(actor_id) if value == ACTOR else value for key, value in chosen.items()}
            query = AuditEventQuery.model_validate({**given, "sort": sort})
            page = PageRequest(service.ORDERS[query.sort], query.limit, position)
            plan = (await explainer(partial(service.list_page, query=query, page=page))).custom
            used |= plan.indexes
            worst = max(plan.rows_fetched, plan.rows_sorted)
            if plan.scans_a_table or worst > (NEARLY_PAGE if len(names) == 1 else MOST_FETCHED):
                failures.append(f"{' and '.join(names)} by {sort}: {plan}")

    assert failures == []
    assert {index.name for index in AuditEvent.__table__.indexes} <= used  # type: ignore[attr-defined]  # A Table.
