"""The dashboard and the alert rules use only metrics and labels that the application exposes."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, cloned
from tests.test_metrics import site_on

# The worker process declares metrics too: those of jobs, mails and housekeeping.
import_module("app.worker")
MONITORING = ROOT / "deploy" / "monitoring"
ALERTS = MONITORING / "alerts.yaml"
DASHBOARD = MONITORING / "dashboard.json"
# Labels that Prometheus adds.
TARGET = {"job", "instance"}
OF_PROMETHEUS = {"up": set[str]()}
_WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool"}


def rules() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = YAML(typ="safe").load(ALERTS)["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each expression with the name of its alert or panel."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def named(expression: str) -> tuple[dict[str, set[str]], set[str]]:
    """Return the metrics of an expression, each with the labels in its selector, and the labels that it groups by."""
    text = re.sub(r'"[^"]*"', '""', expression)
    text = re.sub(r"\[[^\]]*\]", "", text)
    grouped: set[str] = set()
    for labels in re.findall(r"\b(?:by|on|without|ignoring) *\(([^)]*)\)", text):
        grouped |= set(re.findall(r"\w+", labels))
    text = re.sub(r"\b(?:by|on|without|ignoring) *\([^)]*\)", "", text)
    metrics: dict[str, set[str]] = {}
    for name, selector in re.findall(r"\b([a-z_]\w*)\b(?! *\()(?:\{([^}]*)\})?", re.sub(r"\{[^}]*\}", _joined, text)):
        if name not in _WORDS:
            metrics.setdefault(name, set()).update(re.findall(r"(\w+)(?=!?[=~])", selector))
    return metrics, grouped


def _joined(selector: re.Match[str]) -> str:
    return re.sub(r"\s", "", selector[0])


@pytest.fixture(scope="module")
async def exposed(template_url: str) -> dict[str, set[str]]:
    """The samples that the application exposes, with their labels."""
    async with cloned(template_url) as url, site_on(url) as site:
        shown = await site.until(lambda shown: "revocation_age_seconds" in shown.types)
    return shown.labels | OF_PROMETHEUS


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
async def test_each_metric_of_an_expression_is_exposed(
    exposed: dict[str, set[str]], place: str, expression: str
) -> None:
    metrics, grouped = named(expression)

    assert metrics, place
    for name, labels in metrics.items():
        assert name in exposed, f"{place}: there is no metric {name}"
        assert labels <= exposed[name] | TARGET, f"{place}: {name} has no label {labels - exposed[name] - TARGET}"
        assert grouped <= exposed[name] | TARGET, f"{place}: {name} has no label {grouped - exposed[name] - TARGET}"


def test_metrics_and_labels_are_read_from_an_expression() -> None:
    text = 'sum by (le, route) (rate(a_bucket{status="5xx", method!~"G{1}ET"}[5m])) > 1 and on (pool) b_total'

    assert named(text) == ({"a_bucket": {"status", "method"}, "b_total": set()}, {"le", "route", "pool"})


def test_legends_and_summaries_use_existing_labels() -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            _, grouped = named(target["expr"])
            assert shown <= (grouped or {"instance", "worker"}), panel["title"]
    for rule in rules():
        shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        _, grouped = named(rule["expr"])
        assert shown <= (grouped or {"instance"}), rule["alert"]


def test_each_alert_is_explained_in_the_documentation() -> None:
    page = (ROOT / "docs" / "operations" / "metrics.md").read_text()
    explained = re.findall(r"^\| `([A-Z][a-z]\w+)` \|", page, flags=re.MULTILINE)

    assert [rule["alert"] for rule in rules()] == explained


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (of Debian's package prometheus) is not installed"
)
def test_prometheus_accepts_the_rules() -> None:
    checked = subprocess.run(["promtool", "check", "rules", ALERTS], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
