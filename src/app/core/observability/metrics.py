"""Counters, gauges and histograms of the application; `exposition` shows them.

Each process counts for itself. Names and labels are an interface: dashboards and alerts depend on them.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, product

import prometheus_client
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from app.core.db.retries import once
from app.core.errors import AppError

_registry = prometheus_client.CollectorRegistry()


class Counter:
    """Counts what happens, by labels. Their values must come from the code, never from a request: each is kept for ever.

    Where the values are named beforehand their series are there from the start, so that the first event shows as one.
    """

    def __init__(self, name: str, meaning: str, **labels: Iterable[str]) -> None:
        # `labels()` alone takes longer than counting.
        self._series = cache(prometheus_client.Counter(name, meaning, tuple(labels), registry=_registry).labels)
        for values in product(*labels.values()):
            self._series(*values)

    def count(self, *values: str) -> None:
        """Count one, by the values of the labels in the order of their declaration; work done again is counted once."""
        once(self._series(*values).inc)

    @contextmanager
    def outcome(self, *values: str) -> Iterator[None]:
        """Count how the block ends: `succeeded`, the code of the error that the client is told, or `failed`."""
        try:
            yield
        except AppError as error:
            self.count(*values, error.code)
            raise
        except Exception:
            self.count(*values, "failed")
            raise
        self.count(*values, "succeeded")


class Histogram:
    """How often which size occurs, by labels; for their values the same holds. To be observed in one thread alone.

    The library's own takes three times as long, and every request is observed three times.
    """

    def __init__(self, name: str, meaning: str, *labels: str, buckets: Sequence[float]) -> None:
        self._name, self._meaning, self.labels = name, meaning, labels
        self._bounds = tuple(buckets)
        self._texts = [*map(floatToGoString, buckets), "+Inf"]
        # How many fell into each bucket, and the sum of all.
        self._series: dict[tuple[str, ...], list[float]] = {}
        _registry.register(self)

    def observe(self, size: float, *values: str) -> None:
        """Note one, by the values of the labels in the order of their declaration."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = [0.0] * (len(self._texts) + 1)
        series[bisect_left(self._bounds, size)] += 1
        series[-1] += size

    def collect(self) -> Iterator[Metric]:
        """Give all series, as the library wants to be handed them."""
        family = HistogramMetricFamily(self._name, self._meaning, labels=self.labels)
        for values, (*counts, total) in self._series.items():
            family.add_metric(values, list(zip(self._texts, accumulate(counts), strict=True)), sum_value=total)
        yield family

    # So that the registry knows the name, and refuses another of it.
    describe = collect


class Gauge:
    """A current number, such as requests in progress. The code that adds one also subtracts it."""

    def __init__(self, name: str, meaning: str) -> None:
        self.value = 0
        prometheus_client.Gauge(name, meaning, registry=_registry).set_function(lambda: self.value)


@dataclass(frozen=True, slots=True)
class Reading:
    """What an instrument shows at the moment it is looked at."""

    name: str
    meaning: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


type Instrument = Callable[[], Iterable[Reading]]


def counted() -> Iterator[Metric]:
    """Give everything that has been counted in this process."""
    for family in _registry.collect():
        # When a series began is of no use to a rate, and doubles their number.
        family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        yield family


def as_families(readings: Iterable[Reading]) -> Iterable[Metric]:
    """Give readings the form of what has been counted."""
    families: dict[str, Metric] = {}
    for reading in readings:
        family = families.setdefault(reading.name, GaugeMetricFamily(reading.name, reading.meaning))
        family.add_sample(reading.name, dict(reading.labels), reading.value)
    return families.values()
