"""The wheel contains the files of the package that are not Python code, such as SQL and templates."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

from tests.conftest import ROOT


def test_the_wheel_contains_every_file_of_the_package(tmp_path: Path) -> None:
    build = (sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    packaged = set(ZipFile(wheel).namelist())
    source = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "app").rglob("*") if path.is_file()}
    assert {name for name in source if "__pycache__" not in name} <= packaged
