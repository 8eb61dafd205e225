"""Counters, gauges and histograms of the application; `exposition` serves them over HTTP.

Each process has its own values. Names and labels are an interface: dashboards and alerts depend on them.
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
from sqlalchemy.ext.asyncio import AsyncEngine

from app.core.db.connections import pool_of
from app.core.db.retries import after_last_attempt
from app.core.errors import AppError

_registry = prometheus_client.CollectorRegistry()


class Counter:
    """Counts events by labels. Label values must come from the code, never from a request, because each series is kept forever.

    If the declaration lists the values of every label, their series start at zero. So a rate includes the first event. A label with
    an empty tuple has values that are not known in advance; its series start with the first event.
    """

    def __init__(self, name: str, meaning: str, **labels: Iterable[str]) -> None:
        # The cache saves `labels()`, which takes longer than the increment.
        self._series = cache(prometheus_client.Counter(name, meaning, tuple(labels), registry=_registry).labels)
        for values in product(*labels.values()):
            self._series(*values)

    def count(self, *values: str) -> None:
        """Count one event, with label values in the order of the declaration. A retried unit of work counts it once."""
        after_last_attempt(self._series(*values).inc)

    @contextmanager
    def outcome(self, *values: str) -> Iterator[None]:
        """Count how the block ends: `succeeded`, the code of an `AppError`, or `failed` for any other exception."""
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
    """Counts values in buckets, by labels. For label values, see `Counter`. Not thread-safe: call `observe` in one thread only.

    The library's histogram takes three times as long, and each request makes three observations.
    """

    def __init__(self, name: str, meaning: str, *labels: str, buckets: Sequence[float]) -> None:
        self._name, self._meaning, self.labels = name, meaning, labels
        self._bounds = tuple(buckets)
        self._texts = [*map(floatToGoString, buckets), "+Inf"]
        # For each series: the number of values in each bucket, then the sum of all values.
        self._series: dict[tuple[str, ...], list[float]] = {}
        _registry.register(self)

    def observe(self, size: float, *values: str) -> None:
        """Record one value, with label values in the order of the declaration."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = [0.0] * (len(self._texts) + 1)
        series[bisect_left(self._bounds, size)] += 1
        series[-1] += size

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=self.labels)
        for values, (*counts, total) in self._series.items():
            family.add_metric(values, list(zip(self._texts, accumulate(counts), strict=True)), sum_value=total)
        yield family

    # The registry uses this to find the name, and rejects a second metric with the same name.
    describe = collect


class Gauge:
    """A current number, such as requests in progress. The caller changes `value`."""

    def __init__(self, name: str, meaning: str) -> None:
        self.value = 0
        prometheus_client.Gauge(name, meaning, registry=_registry).set_function(lambda: self.value)


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a gauge at the time of a scrape."""

    name: str
    meaning: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def readings_of_pool(name: str, engine: AsyncEngine) -> Iterator[Reading]:
    """Yield the readings of the connection pool of an engine."""
    pool, labels = pool_of(engine), {"pool": name}
    yield Reading("database_pool_size", "Maximum number of connections in the pool.", pool.size(), labels)
    yield Reading("database_pool_in_use", "Connections in use.", pool.checkedout(), labels)
    yield Reading("database_pool_waiting", "Tasks that wait for a connection of the pool.", pool.waiting, labels)


type Instrument = Callable[[], Iterable[Reading]]


def own_families() -> Iterator[Metric]:
    """Yield all counters, gauges and histograms of this process."""
    for family in _registry.collect():
        # The creation time of a series is useless for rates, and would double the number of series.
        family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        yield family


def as_families(readings: Iterable[Reading]) -> Iterable[Metric]:
    """Convert readings to the library's metric families: all values of one name in one family."""
    families: dict[str, Metric] = {}
    for reading in readings:
        family = families.setdefault(reading.name, GaugeMetricFamily(reading.name, reading.meaning))
        family.add_sample(reading.name, dict(reading.labels), reading.value)
    return families.values()
