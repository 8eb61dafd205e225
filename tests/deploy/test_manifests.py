"""The files for containers: Dockerfile, compose, and what kustomize makes of the manifests for Kubernetes."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from app.core.config.loading import variables
from app.settings import settings_model
from tests.conftest import ROOT

pytestmark = pytest.mark.deploy

DEPLOY = ROOT / "deploy"
OVERLAYS = ("cloudnative-pg", "managed-database")
VERSIONS = ("1.35", "1.36", "1.37")
KINDS = {
    *("ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "Service"),
}
# These resources belong to the operator, whose schemas are not at hand.
OF_OPERATOR = ("Cluster", "Pooler")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@cache
def built(overlay: str) -> str:
    ended = run("kubectl", "kustomize", DEPLOY / "kubernetes" / overlay)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def problems(manifests: str, version: str, directory: Path) -> list[str]:
    """Return what the schemas of a version of Kubernetes find."""
    file = directory / "manifests.yaml"
    file.write_text(manifests)
    ended = run("kubernetes-validate", "--strict", "--kubernetes-version", version, file)
    lines = (ended.stdout + ended.stderr).splitlines()
    found = [
        line for line in lines if not line.startswith("INFO") and not any(f"kind {one} " in line for one in OF_OPERATOR)
    ]
    return [line for line in found if line.strip()]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_accepts_the_manifests(overlay: str, version: str, tmp_path: Path) -> None:
    manifests = built(overlay)

    assert set(re.findall(r"(?m)^kind: (\w+)$", manifests)) >= KINDS
    assert problems(manifests, version, tmp_path) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("readOnlyRootFilesystem", "readOnlyRootFileSystem"), ("minReplicas: 2", "minReplicas: two")],
)
def test_a_typo_is_found(right: str, wrong: str, version: str, tmp_path: Path) -> None:
    manifests = built("managed-database")
    assert right in manifests

    assert problems(manifests.replace(right, wrong, 1), version, tmp_path) != []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_container_is_confined_and_has_no_secret_in_the_files(overlay: str) -> None:
    manifests = built(overlay)
    containers = manifests.count("image: registry.example.com/app:")

    assert containers == 4
    assert manifests.count("readOnlyRootFilesystem: true") == containers
    assert manifests.count("allowPrivilegeEscalation: false") == containers
    assert manifests.count("runAsNonRoot: true") == 2
    assert "kind: Secret" not in manifests
    assert re.findall(r"://[^$\s]*:[^$\s]*@", manifests) == []


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("*.*")), ids=lambda file: file.name)
def test_settings_in_the_files_exist(file: Path) -> None:
    known = {name for name, _, _ in variables(settings_model())} | {"APP_SECRETS_DIR"}

    assert set(re.findall(r"\bAPP_[A-Z_]+[A-Z]\b", file.read_text() if file.is_file() else "")) <= known


def test_compose_accepts_its_file(tmp_path: Path) -> None:
    check = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    misspelt = tmp_path / "compose.yaml"
    misspelt.write_text((DEPLOY / "compose.yaml").read_text().replace("healthcheck:", "healthchek:", 1))

    ended = run(*check, DEPLOY / "compose.yaml")

    assert ended.returncode == 0, ended.stdout
    assert run(*check, misspelt).returncode == 1


def test_the_workflows_are_valid_and_have_no_finding() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

    for ended in (
        run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows),
        run("zizmor", "--offline", "--quiet", *workflows),
    ):
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_dockerfile_has_no_finding(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text((ROOT / "Dockerfile").read_text() + "RUN cd /tmp && sudo apt-get install curl\n")

    ended = run("hadolint", ROOT / "Dockerfile")

    assert (ended.returncode, ended.stdout) == (0, "")
    assert run("hadolint", wrong).returncode == 1
