"""PostgreSQL is killed and restarted under load. No acknowledged write is lost, and the application recovers by itself.

`make test` does this once. To repeat it as often as the documentation promises:

    FAULTS=full python -m pytest -n0 tests/faults/test_outage.py
    FAULTS_KILLS=20 FAULTS_WRITES=200 FAULTS_PROCESSES=2 FAULTS_CLIENTS=8 …
"""

import os

import pytest

from tests.faults.conftest import IS_FULL
from tests.faults.load import NO_RESPONSE, Ledger, writing
from tests.faults.postgres import PrivatePostgres
from tests.faults.site import discrepancies, site_on

KILLS = int(os.environ.get("FAULTS_KILLS", "50" if IS_FULL else "1"))
# Acknowledged writes between two kills.
WRITES = int(os.environ.get("FAULTS_WRITES", "1000" if IS_FULL else "20"))
PROCESSES = int(os.environ.get("FAULTS_PROCESSES", "2" if IS_FULL else "1"))
CLIENTS = int(os.environ.get("FAULTS_CLIENTS", "8"))
_RECOVERY_TIMEOUT = 5.0
_TIMEOUT = 60.0


async def test_no_acknowledged_write_is_lost_when_postgresql_is_killed_repeatedly(
    postgres: PrivatePostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger()
    recoveries: list[float] = []
    async with site_on(postgres, processes=PROCESSES) as site, writing(ledger, site.create_account, clients=CLIENTS):
        for _ in range(KILLS):
            await site.log_in()
            await ledger.wait_for_writes(WRITES, within=_TIMEOUT + WRITES)
            await postgres.kill()
            await postgres.start()
            recoveries.append(await ledger.recovery_time(within=_TIMEOUT))

    assert await discrepancies(postgres, ledger) == {}
    assert max(recoveries) < _RECOVERY_TIMEOUT
    assert ledger.responses.keys() <= {201, 503, NO_RESPONSE}
    with capsys.disabled():
        print(  # noqa: T201  # The result of the measurement.
            f"\n{KILLS} kills, {len(ledger.sent)} writes sent, {len(ledger.acknowledged)} acknowledged; "
            f"responses {dict(ledger.responses)}; recovered after at most {max(recoveries):.2f} s"
        )
