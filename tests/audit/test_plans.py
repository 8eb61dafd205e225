"""Query plan of the events about an account, with 100,000 events; see tests/users/test_plans.py."""

from uuid import UUID

import pytest
from sqlalchemy import text

from app.audit import service
from tests.volume import EVENTS, ROWS, explaining, filled

# Each account is the actor or the subject of about a hundred events.
MOST_FETCHED = ROWS / 100


@pytest.mark.slow
async def test_the_events_about_an_account_are_read_without_a_scan(template_url: str) -> None:
    async with filled(template_url, EVENTS) as database, explaining(database) as explainer:
        async with database.read_sessions() as session:
            actor_id: UUID = (await session.execute(text("SELECT actor_id FROM audit_events LIMIT 1"))).scalar_one()

        plan = (await explainer(lambda session: service.list_about(session, actor_id, limit=1000))).custom

    assert not plan.scans_a_table
    assert plan.rows_fetched <= MOST_FETCHED
