"""Reads the values of metrics, from an HTTP response or from this process."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from httpx2 import AsyncClient
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from app.core.observability.metrics import Histogram, _registry, own_families


@dataclass(frozen=True)
class Scrape:
    """One response of `/metrics`."""

    text: str

    @property
    def types(self) -> dict[str, str]:
        """The type of each metric, by name."""
        return {family.name: family.type for family in text_string_to_metric_families(self.text)}

    @property
    def labels(self) -> dict[str, set[str]]:
        """The label names of each sample name, including metrics that have no sample yet."""
        found = _declared_labels()
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        return found

    def values(self, name: str, **labels: str) -> dict[str, float]:
        """Return the values with this name and these labels, by worker."""
        return {sample.labels.get("worker", ""): sample.value for sample in self._samples(name, labels)}

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of these values; 0 if there are none."""
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
    """Return the sum of the values in this process, without HTTP."""
    return sum(
        sample.value
        for family in own_families()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def scrape(port: int, *, headers: Mapping[str, str] | None = None) -> Scrape:
    async with AsyncClient() as client:
        response = await client.get(f"http://127.0.0.1:{port}/metrics", headers=headers)
    assert response.status_code == 200, response.text
    return Scrape(response.text)
