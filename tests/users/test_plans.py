"""Query plans for each filter and sort order of the list, with 100,000 accounts.

A statement reads a page of 50 rows and one more. If one index covers both filter and sort order, PostgreSQL reads only these rows.
Otherwise it either walks the sort order and skips rows that do not match, or sorts the matching rows. The cost of the cheaper way
is highest where both cost the same, at about the square root of the table's size. The limits below follow from that.
"""

import itertools
from datetime import UTC, datetime
from uuid import UUID

import pytest

from app.auth.access import crud as access_crud
from app.core.db.database import WriteSession
from app.core.db.keyset import PageRequest, Position
from app.users import service
from app.users.models import User
from app.users.schemas import UserQuery
from tests.volume import ROWS, USERS, Explainer, Plan, Plans, explaining, filled

# A page of 50 rows, the next row, and as many skipped rows for a filter that matches nearly all.
NEARLY_PAGE = 2 * 51
# Without such an index, a statement may read a tenth of the table, and sort a thirtieth.
MOST_FETCHED = ROWS / 10
MOST_SORTED = ROWS / 30

AFTER = "created_after"
BEFORE = "created_before"
FILTERS: dict[str, dict[str, str]] = {
    "all": {},
    "an address": {"email": "c4ca4238a0b923820dcc509a6f75849b@example.com"},
    "one by prefix": {"q": "c4ca4238"},
    "some by prefix": {"q": "c4"},
    "many by prefix": {"q": "c"},
    "none by prefix": {"q": "zzz"},
    "administrators": {"role": "admin"},
    "users": {"role": "user"},
    "active": {"is_active": "true"},
    "disabled": {"is_active": "false"},
    "nearly all by age": {AFTER: "2020-01-02T00:00:00Z"},
    "some by age": {AFTER: "2021-11-20T00:00:00Z"},
    "none by age": {AFTER: "2025-01-01T00:00:00Z"},
    "the first by age": {BEFORE: "2020-01-02T00:00:00Z"},
    "one day": {AFTER: "2021-01-02T00:00:00Z", BEFORE: "2021-01-03T00:00:00Z"},
}
SORTS = ("created_at", "-created_at", "email", "-email")
# One index covers these filters and this order, so nearly every row that is read is on the page.
EXACT = {"all", "an address", "administrators", "users", "active", "disabled"}
EXACT_BY_AGE = EXACT | {"nearly all by age", "some by age", "none by age", "the first by age", "one day"}


def middle(sort: str) -> Position:
    return ("8",) if sort.endswith("email") else (datetime(2020, 9, 1, tzinfo=UTC), UUID(int=0))


async def explain(explainer: Explainer, query: dict[str, str], sort: str, position: Position | None) -> Plans:
    parsed = UserQuery.model_validate({**query, "sort": sort})
    page = PageRequest(service.ORDERS[parsed.sort], parsed.limit, position)
    return await explainer(lambda session: service.list_page(session, parsed, page))


def fails(name: str, sort: str, plans: Plans) -> bool:
    plan = plans.custom
    if plan.scans_a_table:
        return True
    if name in (EXACT if sort.endswith("email") else EXACT_BY_AGE):
        return plan.rows_fetched > NEARLY_PAGE or plan.rows_sorted > NEARLY_PAGE
    return plan.rows_fetched > MOST_FETCHED or plan.rows_sorted > MOST_SORTED


def together(first: str, second: str) -> bool:
    return FILTERS[first].keys().isdisjoint(FILTERS[second])


async def lock_admins(session: WriteSession) -> None:
    """Take the locks of a write that may remove an administrator."""
    nobody = UUID(int=0)
    await access_crud.lock_token_status(
        session, nobody, nobody, accounts=[nobody], with_admins=True, unverified_can_log_in=False
    )


@pytest.mark.slow
async def test_no_list_scans_or_sorts_the_table(template_url: str) -> None:
    pairs = [pair for pair in itertools.combinations(list(FILTERS)[1:], 2) if together(*pair)]
    failures: list[str] = []
    used: set[str] = set()
    dearest: dict[str, float] = {}
    kept: dict[str, Plan] = {}
    async with filled(template_url, USERS) as database, explaining(database) as explainer:
        for (name, query), sort, deep in itertools.product(FILTERS.items(), SORTS, (False, True)):
            plans = await explain(explainer, query, sort, middle(sort) if deep else None)
            used |= plans.custom.indexes
            dearest[plans.statement] = max(plans.custom.cost, dearest.get(plans.statement, 0))
            if fails(name, sort, plans):
                failures.append(f"{name} by {sort}: {plans.custom}")
            if "q" not in query and not deep and plans.generic.rows_fetched > MOST_FETCHED:
                kept[plans.statement] = plans.generic
        # PostgreSQL may use one generic plan for all values of a statement if it estimates that plan as cheaper. On the first
        # page it must not. With a prefix or a cursor, it may do so for a client that sends only the most expensive values.
        failures += [f"for any values: {plan}" for statement, plan in kept.items() if plan.cost < dearest[statement]]
        for (first, second), sort in itertools.product(pairs, SORTS[1:3]):
            plans = await explain(explainer, FILTERS[first] | FILTERS[second], sort, None)
            if fails(f"{first} and {second}", sort, plans):
                failures.append(f"{first} and {second} by {sort}: {plans.custom}")
        locking = await explainer(lock_admins)
        used |= locking.custom.indexes
        if locking.custom.rows_fetched > ROWS / 50:
            failures.append(f"locking the administrators: {locking.custom}")

    assert failures == []
    assert {index.name for index in User.__table__.indexes} <= used  # type: ignore[attr-defined]  # A Table.
