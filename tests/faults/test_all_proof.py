"""The comparison detects lost writes: the same run on a PostgreSQL that acknowledges before it writes."""

from pathlib import Path

from tests.faults.load import Ledger, writing
from tests.faults.site import discrepancies, private_postgres, site_on

_LOSING = ("synchronous_commit=off", "wal_writer_delay=10s", "wal_writer_flush_after=1GB")


async def test_writes_that_were_acknowledged_too_early_are_reported_as_lost(tmp_path: Path) -> None:
    ledger = Ledger()
    async with private_postgres(tmp_path, *_LOSING) as postgres:
        async with site_on(postgres) as site:
            # Rows from before the load must not be lost.
            await postgres.execute("CHECKPOINT")
            async with writing(ledger, site.create_account, clients=8):
                await ledger.wait_for_writes(50, within=120)
                await postgres.kill()
        await postgres.start()
        found = await discrepancies(postgres, ledger)

    assert {table for table, comparison in found.items() if comparison.lost} == {"accounts", "events", "jobs"}
