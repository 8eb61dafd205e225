"""`make remove DEPLOYED=1`: the code goes in one release, the models and the tables in the next."""

import asyncio
import sys
from pathlib import Path

import pytest

from app.dev.generator.plan import plan as generate
from app.dev.removal import command
from app.dev.removal.plan import Removal, plan
from tests.dev.removal.conftest import commit, git
from tests.dev.test_generated_features import program
from tests.listings import run

VERSIONS = "src/app/migrations/versions"


def remove(root: Path, name: str) -> Removal:
    removal = plan(root, name, is_deployed=True)
    removal.write()
    return removal


def test_the_first_run_deletes_the_code_and_keeps_the_models(copy: Path) -> None:
    (copy / "src/app/strings/kinds.py").write_text("KINDS = ('steel', 'gut')\n")
    models = copy / "src/app/strings/models.py"
    models.write_text(f"from app.strings.kinds import KINDS\n{models.read_text()}")
    commit(copy)

    said = list(command.carry_out(plan(copy, "strings", is_deployed=True)))

    kept = sorted(path.name for path in (copy / "src/app/strings").glob("*.py"))
    assert kept == ["__init__.py", "kinds.py", "models.py"]
    assert not (copy / "tests/strings").exists()
    assert git(copy, "diff", "--name-only", "--", "src/app/features.py", VERSIONS, "tests/migrations.sha256") == ""
    assert any("run the same command again" in sentence for sentence in said)


def test_the_second_run_deletes_the_models_and_writes_the_migration(copy: Path) -> None:
    remove(copy, "strings")
    commit(copy)

    removal = plan(copy, "strings", is_deployed=True)
    said = list(command.carry_out(removal))

    (path,) = removal.created
    text = (copy / path).read_text()
    old = (copy / str(next((copy / VERSIONS).glob("????????_strings.py")))).read_text()
    assert not (copy / "src/app/strings").exists()
    assert "        -- squawk-ignore ban-drop-table\n        DROP TABLE strings\n" in text
    assert old.partition("def upgrade")[2].partition("\n\n\ndef")[0] == text.partition("def downgrade")[2].rstrip("\n")
    assert f"{Path(path).name}\n" in (copy / "tests/migrations.sha256").read_text()
    assert any("Release this after" in sentence for sentence in said)


def test_several_migrations_are_dropped_and_restored_by_one(copy: Path) -> None:
    (head,) = (path.stem for path in (copy / VERSIONS).glob("????????_strings.py"))
    later = copy / VERSIONS / "20991231_tones.py"
    later.write_text(
        f'"""Tones."""\n\nfrom alembic import op\n\nrevision = "20991231_tones"\ndown_revision = "{head}"\n_KIND = "CREATE TYPE tone"\n\n\n'
        'def upgrade() -> None:\n    _make()\n    op.add_column("strings", sa.Column("tone"))\n\n\n'
        'def downgrade() -> None:\n    op.drop_column("strings", "tone")\n    op.execute("DROP TYPE tone")\n\n\n'
        "def _make() -> None:\n    op.execute(_KIND)\n"
    )
    commit(copy)
    remove(copy, "strings")
    commit(copy)

    (text,) = remove(copy, "strings").created.values()

    upgrade = text.partition("def upgrade() -> None:\n")[2].partition("\n\n\ndef")[0]
    assert 'revision = "20991231_drop_strings"\ndown_revision = "20991231_tones"\n' in text
    assert '_KIND = "CREATE TYPE tone"' in text
    assert "def _make() -> None:" in text
    assert "drop_column" not in upgrade
    assert upgrade.index("DROP TYPE tone") < upgrade.index("DROP TABLE strings")
    assert text.index('op.create_table(\n        "strings"') < text.index('op.add_column("strings"')


def test_a_feature_without_tables_is_removed_at_once(copy: Path) -> None:
    for path in ("src/app/strings/models.py", f"{VERSIONS}/{next((copy / VERSIONS).glob('????????_strings.py')).name}"):
        (copy / path).unlink()
    commit(copy)

    removal = plan(copy, "strings", is_deployed=True)

    assert removal.created == {}
    assert not removal.is_first_release


@pytest.mark.slow
async def test_each_release_matches_its_schema_and_the_migration_is_safe(copy: Path, clone_url: str) -> None:
    generate(copy, "cellos", "name:str state:enum(new,old)").write()
    commit(copy)
    url = {"DATABASE_URL": clone_url, "APP_ENVIRONMENT": "local"}
    outputs = []
    for _ in range(2):
        await asyncio.to_thread(remove, copy, "cellos")
        commit(copy)
        await run(copy, sys.executable, "-m", "app", "migrate", **url)
        outputs.append(await run(copy, sys.executable, "-m", "alembic", "check", DATABASE_URL=clone_url))
    sql = copy / "migrations.sql"
    sql.write_text(await run(copy, sys.executable, "-m", "app.dev", "migrations"))
    await run(copy, program("squawk"), str(sql))

    await run(copy, sys.executable, "-m", "app", "migrate", "--to", "-1", **url)
    status = await run(copy, sys.executable, "-m", "app", "migrate", "--status", **url)

    assert all("No new upgrade operations detected" in output for output in outputs)
    assert "DROP TABLE cellos" in sql.read_text()
    assert "_cellos. Pending migrations: 1." in status
