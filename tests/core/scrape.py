"""What an exposition says, as numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from httpx2 import AsyncClient
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from app.core.observability.metrics import Histogram, _registry, counted


@dataclass(frozen=True)
class Scrape:
    """One answer of `/metrics`."""

    text: str

    @property
    def types(self) -> dict[str, str]:
        """The families, by name."""
        return {family.name: family.type for family in text_string_to_metric_families(self.text)}

    @property
    def labels(self) -> dict[str, set[str]]:
        """The labels that the samples of each name have, or will have when there are some."""
        found = _declared_labels()
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        return found

    def values(self, name: str, **labels: str) -> dict[str, float]:
        """Give the samples of this name and these labels, by worker."""
        return {sample.labels.get("worker", ""): sample.value for sample in self._samples(name, labels)}

    def value(self, name: str, **labels: str) -> float:
        """Give the sum of these samples; 0 of none."""
        return sum(sample.value for sample in self._samples(name, labels))

    def _samples(self, name: str, labels: Mapping[str, str]) -> Iterator[Sample]:
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    yield sample


def _declared_labels() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for collector, names in _registry._collector_to_names.items():
        if isinstance(collector, MetricWrapperBase | Histogram):
            labels = collector.labels if isinstance(collector, Histogram) else collector._labelnames
            for name in names:
                found[name] = {*labels, "worker"} | ({"le"} if name.endswith("_bucket") else set())
    return found


def counted_so_far(name: str, **labels: str) -> float:
    """Give what this process has counted, without asking for it over HTTP."""
    return sum(
        sample.value
        for family in counted()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def scrape(port: int, *, headers: Mapping[str, str] | None = None) -> Scrape:
    async with AsyncClient() as client:
        response = await client.get(f"http://127.0.0.1:{port}/metrics", headers=headers)
    assert response.status_code == 200, response.text
    return Scrape(response.text)
