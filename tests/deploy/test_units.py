"""The units of systemd: systemd knows every setting, and the services are confined."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.deploy

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
# In tenths: 0 is fully confined, 100 not at all.
MOST_EXPOSED = 15


def verify(directory: Path, unit: Path, change: str = "") -> str:
    """Return what systemd says about a unit whose program exists."""
    copy = directory / unit.name
    copy.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", unit.read_text()) + change)
    ended = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    return ended.stderr.strip()


def security(unit: Path) -> subprocess.CompletedProcess[str]:
    options = ("--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager")
    return subprocess.run(
        ["systemd-analyze", "security", *options, str(unit)], capture_output=True, text=True, check=False
    )


def test_there_is_a_unit_for_each_service() -> None:
    assert len(UNITS) == 2
    assert [re.findall(r"ExecStart=\S+/app (\w+)", unit.read_text()) for unit in UNITS] == [["worker"], ["serve"]]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    assert verify(tmp_path, unit) == ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_service_is_confined(unit: Path) -> None:
    ended = security(unit)

    assert ended.returncode == 0, ended.stdout


def test_a_misspelt_setting_and_a_missing_restriction_are_found(tmp_path: Path) -> None:
    assert "'ProtectHoem'" in verify(tmp_path, UNITS[0], "\n[Service]\nProtectHoem=yes\n")
    loose = tmp_path / "loose.service"
    loose.write_text(re.sub(r"(?m)^(Protect|Restrict|Private|DynamicUser).*\n", "", UNITS[0].read_text()))
    assert security(loose).returncode != 0
