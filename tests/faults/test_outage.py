"""PostgreSQL is killed, hung and restarted under load: nothing acknowledged is lost, and nobody restarts the application.

`make test` does it once. As often as it is promised:

    FAULTS=full python -m pytest -n0 tests/faults/test_outage.py
    FAULTS_KILLS=20 FAULTS_WRITES=200 FAULTS_PROCESSES=2 FAULTS_CLIENTS=8 …
"""

import os

import pytest

from tests.faults.conftest import IS_FULL
from tests.faults.load import Ledger, writing
from tests.faults.postgres import PrivatePostgres
from tests.faults.site import discrepancies, site_on

KILLS = int(os.environ.get("FAULTS_KILLS", "50" if IS_FULL else "1"))
# Acknowledged between one kill and the next.
WRITES = int(os.environ.get("FAULTS_WRITES", "1000" if IS_FULL else "50"))
PROCESSES = int(os.environ.get("FAULTS_PROCESSES", "2" if IS_FULL else "1"))
CLIENTS = int(os.environ.get("FAULTS_CLIENTS", "8"))
_HEALED = 5.0
_PATIENCE = 60.0


async def test_nothing_acknowledged_is_lost_however_often_postgresql_is_killed(
    postgres: PrivatePostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger()
    healed: list[float] = []
    async with site_on(postgres, processes=PROCESSES) as site, writing(ledger, site.create_account, clients=CLIENTS):
        for _ in range(KILLS):
            await site.log_in()
            await ledger.acknowledges(WRITES, within=_PATIENCE + WRITES)
            await postgres.kill()
            await postgres.start()
            healed.append(await ledger.works_again(within=_PATIENCE))

    assert await discrepancies(postgres, ledger) == {}
    assert max(healed) < _HEALED
    assert ledger.answers.keys() <= {201, 503, "no answer"}
    with capsys.disabled():
        print(  # noqa: T201  # The point of it.
            f"\n{KILLS} kills, {len(ledger.sent)} writes sent, {len(ledger.acknowledged)} acknowledged; "
            f"answers {dict(ledger.answers)}; healed after at most {max(healed):.2f} s"
        )
