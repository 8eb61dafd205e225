"""The purges of second factors on large tables."""

from functools import partial

import pytest

from app.factors import crud
from app.factors.login import crud as login_crud
from app.jobs.housekeeping import BATCH
from tests.test_housekeeping import SIZES, Case
from tests.test_housekeeping import test_the_rows_and_the_time_of_a_step_are_limited as check

_UUID = "lpad(to_hex(n), 32, '0')::uuid"
CASES = {
    "waiting logins": Case(
        "login_challenges",
        "INSERT INTO login_challenges (id, user_id, authz_version, scope, nonce, pepper_id, expires_at) "  # noqa: S608  # Constants of this file.
        f"SELECT {_UUID}, {_UUID}, 1, '', '', 1, now() - n * interval '1 s' FROM generate_series(1, {{rows}}) AS n",
        "login_challenges",
        partial(login_crud.purge_challenges, batch=BATCH),
    ),
    "unconfirmed secrets": Case(
        "pending_totp_secrets",
        # Three of four are confirmed, and stay.
        "INSERT INTO totp_secrets (user_id, sealed, created_at, confirmed_at) "  # noqa: S608  # Constants of this file.
        f"SELECT {_UUID}, '', now() - interval '11 min' - n * interval '1 s', CASE WHEN n % 4 > 0 THEN now() END "
        "FROM generate_series(1, {rows}) AS n",
        "totp_secrets",
        partial(crud.purge_pending, batch=BATCH),
    ),
}


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_the_rows_and_the_time_of_a_purge_are_limited(template_url: str, case: Case, rows: int) -> None:
    await check(template_url, case, rows)
